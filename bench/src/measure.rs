//! Time, CPU and memory of a child or of a running process.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};

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
    let (mut peak_rss_kib, mut cpu_seconds) = (0, 0.0f64);
    let status = loop {
        // A finished child keeps its accounts until it is waited for; these are read first.
        let (cpu, rss) = usage(child.id());
        (cpu_seconds, peak_rss_kib) = (cpu_seconds.max(cpu), peak_rss_kib.max(rss));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(Cost { seconds: start.elapsed().as_secs_f64(), cpu_seconds, peak_rss_kib })
}

/// CPU seconds (own threads and waited-for children) and peak RSS in KiB of a process; zeroes when it is gone.
fn usage(pid: u32) -> (f64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    // After the name: state is field 0, utime 11, stime 12, cutime 13, cstime 14; in ticks of 1/100 s.
    let ticks: u64 = (11..=14).filter_map(|i| fields.get(i)?.parse::<u64>().ok()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    (ticks as f64 / 100.0, peak.unwrap_or(0))
}

/// A running process from some moment on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessCost {
    pid: u32,
    cpu_before: f64,
}

impl ProcessCost {
    pub(crate) fn start(pid: u32) -> Self {
        Self { pid, cpu_before: usage(pid).0 }
    }

    /// CPU seconds since then, and the process's peak RSS in KiB.
    pub(crate) fn so_far(&self) -> (f64, u64) {
        let (cpu, rss) = usage(self.pid);
        (cpu - self.cpu_before, rss)
    }
}

/// Whether a program is there to be run.
pub(crate) fn installed(name: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(name).is_file())
}

/// Drops the page cache, where the user may.
pub(crate) fn drop_caches() {
    let _ = Command::new("sync").status();
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
}
