//! Time, CPU and memory of a child or of a running process.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use farside_tests::usage;

/// What something cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_rss_kib: u64,
}

/// Runs a command to its end, with its children.
pub(crate) fn timed(command: &mut Command) -> Result<Cost> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().with_context(|| format!("{command:?}"))?;
    let (mut peak_rss_kib, mut cpu) = (0, Duration::ZERO);
    let status = loop {
        // A finished child keeps its accounts until it is waited for; these are read first.
        let now = usage(child.id());
        (cpu, peak_rss_kib) = (cpu.max(now.0), peak_rss_kib.max(now.1));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(Cost { seconds: start.elapsed().as_secs_f64(), cpu_seconds: cpu.as_secs_f64(), peak_rss_kib })
}

/// A running process from some moment on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessCost {
    pid: u32,
    cpu_before: Duration,
}

impl ProcessCost {
    pub(crate) fn start(pid: u32) -> Self {
        Self { pid, cpu_before: usage(pid).0 }
    }

    /// CPU seconds since then, and the process's peak RSS in KiB.
    pub(crate) fn so_far(&self) -> (f64, u64) {
        let (cpu, rss) = usage(self.pid);
        (cpu.saturating_sub(self.cpu_before).as_secs_f64(), rss)
    }
}

/// Of numbers in any order; zeroes of none.
pub(crate) fn median_and_most(mut numbers: Vec<u64>) -> (u64, u64) {
    numbers.sort_unstable();
    (numbers.get(numbers.len() / 2).copied().unwrap_or(0), numbers.last().copied().unwrap_or(0))
}

/// Whether a program is there to be run.
pub(crate) fn installed(name: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(name).is_file())
}

/// From now on a process, with all its threads, has only the processors' time that nobody else wants. A gateway is another machine:
/// what it takes from a host that is measured beside it here is no property of either.
///
/// # Errors
/// Where the user may not, or there is no `chrt`.
pub(crate) fn stand_aside(process: u32) -> Result<()> {
    let mut command = Command::new("chrt");
    command.args(["--all-tasks", "--idle", "--pid", "0", &process.to_string()]);
    let done = command.status().with_context(|| format!("{command:?}"))?;
    if done.success() { Ok(()) } else { bail!("{command:?}: {done}") }
}

/// Drops the page cache, where the user may; says whether he may.
pub(crate) fn drop_caches() -> bool {
    let _ = Command::new("sync").status();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}
