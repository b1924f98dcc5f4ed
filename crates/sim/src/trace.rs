//! What happened, in words. Written only when asked for; the last lines are kept always, for the report of a failure.

use std::collections::VecDeque;

const KEPT: usize = 60;

/// The story of a run.
#[derive(Debug)]
pub struct Trace {
    print: bool,
    quiet: bool,
    /// Before each line: whose story it is.
    of: String,
    last: VecDeque<String>,
}

impl Trace {
    /// One that prints every line at once, or one that keeps only the last few; of one host, or of one of several.
    pub fn new(print: bool, host: Option<usize>) -> Self {
        let of = host.map_or_else(String::new, |host| format!("host{host} "));
        Self { print, quiet: false, of, last: VecDeque::new() }
    }

    /// One that keeps nothing (the fastest).
    pub fn off() -> Self {
        Self { print: false, quiet: true, of: String::new(), last: VecDeque::new() }
    }

    /// Whether lines are wanted at all.
    pub fn wants(&self) -> bool {
        !self.quiet
    }

    /// Adds a line. `step` and `now_us` say when.
    pub fn line(&mut self, step: u64, now_us: u64, text: impl FnOnce() -> String) {
        if self.quiet {
            return;
        }
        let line = format!("{}{step:6} {:9.3} ms  {}", self.of, now_us as f64 / 1000.0, text());
        if self.print {
            println!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The last lines.
    pub fn tail(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }
}
