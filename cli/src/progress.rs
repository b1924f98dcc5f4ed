//! How far something is that takes a while: a bar on a terminal, a line now and then in a pipe; both on standard error.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::print;

/// What daemons count in.
const REGION_BYTES: u64 = 4 << 20;
/// In a pipe a line is printed so often.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

const WITH_TOTAL: &str = "{wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
const WITHOUT_TOTAL: &str = "{spinner} {binary_bytes}, {binary_bytes_per_sec}";

/// A bar, or lines. May be told from any thread.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
    silent: bool,
}

impl Progress {
    /// Nothing done yet. With `json` there are no lines, but a terminal has its bar.
    pub(crate) fn new(json: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template(WITHOUT_TOTAL).expect("a valid template"));
            bar
        });
        Self { bar, last_line: Mutex::new(Instant::now()), silent: json }
    }

    /// So much of so much.
    pub(crate) fn set(&self, done_bytes: u64, total_bytes: u64) {
        if let Some(bar) = &self.bar {
            if bar.length().is_none() {
                bar.set_style(ProgressStyle::with_template(WITH_TOTAL).expect("a valid template"));
            }
            bar.set_length(total_bytes);
            bar.set_position(done_bytes);
            return;
        }
        self.line(|| {
            let percent = print::percent(done_bytes, total_bytes);
            format!("{} of {} ({percent})", print::bytes(done_bytes), print::bytes(total_bytes))
        });
    }

    /// The same in regions, as daemons count.
    pub(crate) fn set_regions(&self, done: u64, total: u64) {
        self.set(done * REGION_BYTES, total * REGION_BYTES);
    }

    /// So much, of nobody knows how much.
    pub(crate) fn count(&self, done_bytes: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done_bytes),
            None => self.line(|| print::bytes(done_bytes)),
        }
    }

    fn line(&self, text: impl FnOnce() -> String) {
        let Ok(mut last) = self.last_line.try_lock() else { return };
        if !self.silent && last.elapsed() >= LINE_INTERVAL {
            *last = Instant::now();
            eprintln!("{}", text());
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
