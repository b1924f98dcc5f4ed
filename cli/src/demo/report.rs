//! How the demo is told: lines as it happens (on standard error when the end is JSON), a bar where there is a terminal, and
//! the table of what was measured.

use std::time::Instant;

use farside_control::PointId;
use serde::Serialize;

use super::site::Usage;
use crate::failure::Failure;
use crate::print::{self, Table};
use crate::progress::Progress;

/// Everything that was measured. Serialised as it is for `--json`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Measured {
    /// Which workload ran.
    pub(crate) form: &'static str,
    /// Size of the volume.
    pub(crate) volume_bytes: u64,
    /// What its files took at first.
    pub(crate) files_bytes: u64,
    /// From the start of the processes to the first point.
    pub(crate) first_sync_ms: u64,
    /// Content that the first sync sent.
    pub(crate) first_sync_bytes: u64,
    /// What that was on the wire.
    pub(crate) first_sync_wire_bytes: u64,
    /// How long the workload ran.
    pub(crate) workload_ms: u64,
    /// What it wrote.
    pub(crate) written_bytes: u64,
    /// What went over the wire meanwhile.
    pub(crate) wire_bytes: u64,
    /// Points published meanwhile.
    pub(crate) points: u64,
    /// The median of the lag as it was reported.
    pub(crate) lag_ms_median: u64,
    /// The worst of it.
    pub(crate) lag_ms_max: u64,
    /// Between the newest point's cut and the kill.
    pub(crate) lost_ms: u64,
    #[serde(skip)]
    pub(crate) killed_ns: u64,
    #[serde(skip)]
    pub(crate) source_usage: Option<Usage>,
    #[serde(skip)]
    pub(crate) receiver_usage: Option<Usage>,
    /// What was restored and compared.
    pub(crate) restores: Vec<RestoreReport>,
}

/// One restored point.
#[derive(Debug, Serialize)]
pub(crate) struct RestoreReport {
    /// Which, in words.
    pub(crate) what: &'static str,
    /// Its id.
    pub(crate) point: PointId,
    /// How long the restore took.
    pub(crate) took_ms: u64,
    /// Size of the volume.
    pub(crate) volume_bytes: u64,
    /// What of it was not zero.
    pub(crate) written_bytes: u64,
    /// The state it holds.
    pub(crate) state: String,
    /// What was compared and found equal.
    pub(crate) compared: String,
    /// e2fsck found nothing.
    pub(crate) file_system_checked: bool,
}

impl Measured {
    /// Takes the lags that were reported.
    pub(crate) fn set_lags(&mut self, mut lags: Vec<u64>) {
        lags.sort_unstable();
        self.lag_ms_median = lags.get(lags.len() / 2).copied().unwrap_or(0);
        self.lag_ms_max = lags.last().copied().unwrap_or(0);
    }

    fn table(&self) -> Table {
        let (bytes, time) = (print::bytes, print::duration_ms);
        let mut table = Table::new(&["WHAT", "MEASURED"]);
        let mut row = |what: &str, measured: String| table.row([what.to_owned(), measured]);
        row("volume", format!("{}, {} of files", bytes(self.volume_bytes), bytes(self.files_bytes)));
        row(
            "first sync",
            format!(
                "{} read in {}, {} on the wire ({})",
                bytes(self.first_sync_bytes),
                time(self.first_sync_ms),
                bytes(self.first_sync_wire_bytes),
                rate(self.first_sync_bytes, self.first_sync_ms)
            ),
        );
        row("workload", self.form.to_owned());
        row(
            "changes",
            format!(
                "{} written in {}, {} on the wire",
                bytes(self.written_bytes),
                time(self.workload_ms),
                bytes(self.wire_bytes)
            ),
        );
        row(
            "points",
            format!(
                "{} published; lag {} in the median, {} at worst",
                self.points,
                time(self.lag_ms_median),
                time(self.lag_ms_max)
            ),
        );
        row("lost by the kill", format!("the last {} before it", time(self.lost_ms)));
        for (who, usage) in [("daemon", self.source_usage), ("receiver", self.receiver_usage)] {
            if let Some(usage) = usage {
                row(who, format!("{} of CPU, at most {} of memory", time(usage.cpu_ms), bytes(usage.rss_bytes_max)));
            }
        }
        for restore in &self.restores {
            let clean = if restore.file_system_checked { "; e2fsck clean" } else { "" };
            row(
                "restore",
                format!(
                    "{} {}: {} in {} ({}), {} equal{clean}",
                    restore.what,
                    restore.point,
                    bytes(restore.written_bytes),
                    time(restore.took_ms),
                    rate(restore.written_bytes, restore.took_ms),
                    restore.compared
                ),
            );
        }
        table
    }
}

fn rate(bytes: u64, ms: u64) -> String {
    format!("{}/s", print::bytes(u64::try_from(u128::from(bytes) * 1000 / u128::from(ms.max(1))).unwrap_or(u64::MAX)))
}

/// Says what happens.
#[derive(Debug)]
pub(crate) struct Narrator {
    json: bool,
    begun: Instant,
}

impl Narrator {
    /// With `json` the story goes to standard error, and only the end to standard output.
    pub(crate) fn new(json: bool) -> Self {
        Self { json, begun: Instant::now() }
    }

    fn line(&self, text: &str) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    /// One step of the story, with its time.
    pub(crate) fn say(&self, text: &str) {
        self.line(&format!("{:>6.1}s  {text}", self.begun.elapsed().as_secs_f64()));
    }

    /// A line below a step.
    pub(crate) fn detail(&self, text: &str) {
        self.line(&format!("         {}", text.trim_end()));
    }

    /// A command that a person may try.
    pub(crate) fn hint(&self, text: &str) {
        self.line(&format!("           {text}"));
    }

    /// A bar for something that takes a while; silence where there is no terminal, since the story has its own lines.
    pub(crate) fn bar(&self) -> Progress {
        Progress::new(true)
    }

    /// The end.
    pub(crate) fn finish(&self, measured: &Measured) -> Result<(), Failure> {
        if self.json {
            return print::json(measured);
        }
        print::out(&format!("\n{}", measured.table()))
    }
}
