//! The log: structured events on standard error, one line each.
//!
//! | Standard error is | A line looks like |
//! |---|---|
//! | the journal | `<4>a switch took long group=default grace_us=12000` (the journal has the time, and reads the priority) |
//! | a terminal, a file, a pipe | `2026-03-01T12:00:00.123Z WARN a switch took long group=default grace_us=12000` |
//!
//! Invariants: one event is one line, whatever a peer put into it; a call site in a loop cannot fill a disk, and what it was
//! kept from saying is counted and said; a pairing token is never written; a log that cannot be written harms nobody, and who
//! logs does not wait for who reads: what standard error does not take at once is lost, which is counted and said (`sink`).
//!
//! Secrets are kept out at their types (their `Debug` says nothing); here is only the second net, for tokens that a person
//! pasted into the wrong place.

mod limit;
mod line;
mod sink;

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Layer, Registry};

use self::limit::{Limiter, Site, Verdict};
use self::line::{Line, Style};
use self::sink::Sink;

/// What is logged unless `FARSIDE_LOG` says otherwise.
const FILTER_DEFAULT: &str = "info";

static LOG: OnceLock<Log> = OnceLock::new();

/// What the log wrote and left out since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Errors.
    pub errors: u64,
    /// Warnings.
    pub warnings: u64,
    /// Lines that were left out because their call site said too many.
    pub suppressed: u64,
    /// Lines that standard error did not take, or not in full.
    pub lost: u64,
}

struct Log {
    style: Style,
    sink: Mutex<Sink>,
    limiter: Mutex<Limiter>,
    errors: AtomicU64,
    warnings: AtomicU64,
    suppressed: AtomicU64,
    lost: AtomicU64,
}

/// Logs to standard error from now on; `FARSIDE_LOG` filters (`debug`, `farside_daemon=trace,info`…).
///
/// Does nothing when the process logs already.
pub fn to_stderr() {
    let said = std::env::var("FARSIDE_LOG").ok();
    let parsed = said.as_deref().map(|said| EnvFilter::builder().parse(said));
    let wrong = parsed.as_ref().and_then(|parsed| parsed.as_ref().err().map(ToString::to_string));
    let filter = parsed.and_then(Result::ok).unwrap_or_else(|| EnvFilter::new(FILTER_DEFAULT));
    let subscriber = Registry::default().with(filter).with(ToStderr);
    if tracing::subscriber::set_global_default(subscriber).is_ok()
        && let Some(wrong) = wrong
    {
        tracing::warn!(%wrong, "FARSIDE_LOG is not a filter; logging at `{FILTER_DEFAULT}`");
    }
}

/// Has the log say what its limits left out and what was lost, where nothing else was said since. Call it now and then.
pub fn report_suppressed() {
    let Some(log) = LOG.get() else { return };
    let reports = log.limiter.lock().unwrap_or_else(PoisonError::into_inner).sweep(Instant::now());
    for (level, text) in reports {
        log.write(&log.style.line(level, &text));
    }
    log.sink().say_lost(|lost| log.of_lost(lost));
}

/// What was written and left out.
pub fn counts() -> Counts {
    let Some(log) = LOG.get() else { return Counts::default() };
    let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
    Counts { errors: load(&log.errors), warnings: load(&log.warnings), suppressed: load(&log.suppressed), lost: load(&log.lost) }
}

impl Log {
    fn new(style: Style, sink: Sink) -> Self {
        Self {
            style,
            sink: Mutex::new(sink),
            limiter: Mutex::default(),
            errors: AtomicU64::new(0),
            warnings: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, line: &str) {
        if !self.sink().line(line, |lost| self.of_lost(lost)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn of_lost(&self, lost: u64) -> String {
        self.style.line(Level::WARN, &format!("the log was not taken for a time: what it said meanwhile is lost lines={lost}"))
    }

    /// The line of an event, unless its call site said too many.
    fn take(&self, now: Instant, event: &Event<'_>) -> Option<String> {
        let level = *event.metadata().level();
        match level {
            Level::ERROR => self.errors.fetch_add(1, Ordering::Relaxed),
            Level::WARN => self.warnings.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        let mut line = Line::default();
        event.record(&mut line);
        let site = Site { call: event.metadata().callsite(), subject: line.subject() };
        let verdict = self.limiter.lock().unwrap_or_else(PoisonError::into_inner).admit(now, site, level, || line.text());
        match verdict {
            Verdict::Suppress => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
            Verdict::Pass { suppressed: 0 } => Some(self.style.line(level, &line.text())),
            Verdict::Pass { suppressed } => Some(self.style.line(level, &format!("{} suppressed={suppressed}", line.text()))),
        }
    }
}

/// The layer that writes.
struct ToStderr;

impl<S: Subscriber> Layer<S> for ToStderr {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let log = LOG.get_or_init(|| Log::new(style(), Sink::new(std::io::stderr())));
        if let Some(line) = log.take(Instant::now(), event) {
            log.write(&line);
        }
    }
}

/// systemd names the journal's stream in the environment; what standard error really is decides (it may be redirected since).
fn style() -> Style {
    let said = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let is_journal = fstat(std::io::stderr().as_fd()).is_ok_and(|s| format!("{}:{}", s.st_dev, s.st_ino) == said);
    if is_journal {
        return Style::Journal;
    }
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    Style::Plain { colour: std::io::stderr().is_terminal() && !no_colour }
}

#[cfg(test)]
mod tests;
