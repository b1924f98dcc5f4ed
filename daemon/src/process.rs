//! What the process as a whole does: logging, readiness and the watchdog towards systemd, memory and I/O settings.

use std::io::IsTerminal as _;
use std::time::Duration;

use tracing::warn;
use tracing_subscriber::EnvFilter;

/// Logs to standard error, one line an event; `FARSIDE_LOG` filters (default `info`). Under journald without time stamps.
///
/// Does nothing when the process logs already.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("FARSIDE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A log that cannot be written (its disk is full, its reader is gone) must not end the process.
    let builder = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let journald = std::env::var_os("JOURNAL_STREAM").is_some();
    let _ = if journald {
        builder.without_time().with_ansi(false).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
}

/// Tells systemd that the service is ready, with a line for `systemctl status`.
pub fn notify_ready(status: &str) {
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(status)]);
}

/// Tells systemd that the service stops.
pub fn notify_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        warn!(%error, "systemd was not told");
    }
}

/// How often the watchdog must be fed (half of what systemd allows), when there is one.
pub fn watchdog_interval() -> Option<Duration> {
    let mut micros = 0;
    sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros / 2))
}

/// Feeds the watchdog once.
pub fn notify_watchdog() {
    notify(&[sd_notify::NotifyState::Watchdog]);
}
