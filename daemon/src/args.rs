//! The command line of `farsided`.

use std::path::PathBuf;

use clap::Parser;

/// Protects this host's volumes: serves them, remembers what changed, streams it to the receiver.
///
/// Runs in the foreground under systemd (`Type=notify`). Reads its configuration and what lies in the folder beside it that ends in `.d` instead of `.toml` (`farsided.d/*.toml` for `farsided.toml`); SIGHUP
/// reads them again; SIGTERM stops cleanly: what is under way is published or remembered exactly, so that the next start
/// re-reads nothing.
///
/// Exit codes: 0 stopped as asked; 1 could not start or had to stop (the log says why); 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "farsided", version)]
pub struct Args {
    /// The configuration file.
    #[arg(long, short, default_value = "/etc/farside/farsided.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// Read the configuration, say what is wrong with it, and do nothing else.
    #[arg(long)]
    pub check: bool,
    /// Decide what becomes of the disks of volumes that no daemon serves, by their policy, and end: what the unit
    /// farside-boot.service does once in a boot. A disk that is shown again is compared in full later.
    #[arg(long, conflicts_with = "check")]
    pub unserved: bool,
    /// With --unserved: show every one of them, at once, whatever its policy.
    #[arg(long, requires = "unserved")]
    pub bare: bool,
}
