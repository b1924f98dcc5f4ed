//! What is said to systemd: readiness, reloads, the watchdog. Without systemd it is said to nobody.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;
use tracing::warn;

/// How often a daemon does its housekeeping where no watchdog asks for more.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// The service is ready; `status` is the line that `systemctl status` shows.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Another line for `systemctl status`.
pub fn status(status: &str) {
    notify(&[NotifyState::Status(status)]);
}

/// The configuration is being read again; [`ready`] follows in any case.
pub fn reloading() {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() * 1_000_000 + t.tv_nsec() / 1000);
    let stamp = format!("MONOTONIC_USEC={now}\n");
    notify(&[NotifyState::Reloading, NotifyState::Custom(&stamp)]);
}

/// The service stops.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Whether systemd is switching this host off. Waits for its answer.
pub fn host_ends() -> bool {
    let asked = std::process::Command::new("systemctl").arg("is-system-running").output();
    asked.is_ok_and(|output| output.stdout.starts_with(b"stopping"))
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        warn!(%error, "systemd was not told");
    }
}

/// Half of what systemd allows between two feedings, where it watches this process (sd_watchdog_enabled(3)).
fn watchdog_interval() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let micros = number("WATCHDOG_USEC").filter(|micros| ours && *micros >= 2)?;
    Some(Duration::from_micros(micros / 2))
}

/// For ever, in the background: feeds the watchdog while `alive` says so, and has the log say what it left out.
///
/// The first feeding comes at once; then twice within systemd's limit.
pub async fn housekeeping(alive: impl Fn() -> bool) {
    let watched = watchdog_interval();
    let mut ticks = tokio::time::interval(watched.unwrap_or(HOUSEKEEPING).min(HOUSEKEEPING));
    loop {
        ticks.tick().await;
        if alive() && watched.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
        crate::log::report_suppressed();
    }
}
