//! Metrics for Prometheus: made at scrape time from what a daemon knows anyway; nothing is counted on their account.
//!
//! A daemon lists its metrics as [`Metric`]s of the type they are read from, so that the page that is served and the table in
//! `docs/metrics.md` come from one place. The text is OpenMetrics, which Prometheus reads.

use std::fmt::Write as _;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`Page::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What kind of number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives; its name ends in `_total`.
    Counter,
    /// As it is now.
    Gauge,
    /// Counted by size.
    Histogram,
}

/// In what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum In {
    /// Plain numbers, or 0 and 1.
    Number,
    /// `_bytes`.
    Bytes,
    /// `_seconds`.
    Seconds,
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter.
    Count(u64),
    /// Of a counter of seconds.
    CountSeconds(f64),
    /// Of a gauge.
    Gauge(f64),
    /// Of a histogram: upper bounds with what fell below each and above the one before; the last bound is infinite.
    Histogram {
        /// All together.
        sum: f64,
        /// Bounds and counts.
        buckets: Vec<(f64, u64)>,
    },
}

/// Values, each with a label of its own if it has one.
pub type Samples = Vec<(Option<(&'static str, String)>, Value)>;

/// A metric that is read from a `T`.
#[derive(Debug)]
pub struct Metric<T> {
    /// Without `farside_`, unit and `_total`.
    pub name: &'static str,
    /// Its unit.
    pub unit: In,
    /// Its kind.
    pub kind: Kind,
    /// One sentence, without its full stop.
    pub help: &'static str,
    /// A label of its own beside the page's, with its values; one without a value is not shown.
    pub read: fn(&T) -> Samples,
}

/// One value without a label of its own.
pub fn one(value: Value) -> Samples {
    vec![(None, value)]
}

/// A gauge that is sometimes not known.
pub fn known(value: Option<f64>) -> Samples {
    value.map(|value| (None, Value::Gauge(value))).into_iter().collect()
}

impl<T> Metric<T> {
    /// As it is served.
    pub fn full_name(&self) -> String {
        let unit = match self.unit {
            In::Number => "",
            In::Bytes => "_bytes",
            In::Seconds => "_seconds",
        };
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("farside_{}{unit}{total}", self.name)
    }
}

/// Rows of the documentation: name, kind, labels, help.
pub fn document<T>(metrics: &[Metric<T>], labels: &str) -> String {
    let mut text = String::new();
    for metric in metrics {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(text, "| `{}` | {kind} | {labels} | {} |", metric.full_name(), metric.help);
    }
    text
}

/// What one scrape shows.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<Family>,
}

#[derive(Debug)]
struct Family {
    name: String,
    unit: In,
    kind: Kind,
    help: &'static str,
    samples: Vec<(Vec<(String, String)>, Value)>,
}

impl Page {
    /// Adds the metrics of `of` under `labels`.
    pub fn add<T>(&mut self, metrics: &[Metric<T>], labels: &[(&str, &str)], of: &T) {
        for metric in metrics {
            let name = format!("farside_{}", metric.name);
            let family = match self.families.iter().position(|family| family.name == name) {
                Some(at) => &mut self.families[at],
                None => {
                    let samples = Vec::new();
                    self.families.push(Family { name, unit: metric.unit, kind: metric.kind, help: metric.help, samples });
                    self.families.last_mut().expect("just pushed")
                }
            };
            for (own, value) in (metric.read)(of) {
                let shared = labels.iter().map(|(key, value)| ((*key).to_owned(), escape(value)));
                family.samples.push((shared.chain(own.map(|(key, value)| (key.to_owned(), escape(&value)))).collect(), value));
            }
        }
    }

    /// The page as OpenMetrics.
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("writing to a string does not fail");
        out
    }
}

/// The encoder writes labels as they are.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in self.families.iter().filter(|family| !family.samples.is_empty()) {
            let unit = match family.unit {
                In::Number => None,
                In::Bytes => Some(Unit::Bytes),
                In::Seconds => Some(Unit::Seconds),
            };
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(&family.name, family.help, unit.as_ref(), kind)?;
            for (labels, value) in &family.samples {
                let mut sample = metric.encode_family(labels)?;
                match value {
                    Value::Count(count) => sample.encode_counter::<NoLabelSet, _, u64>(count, None)?,
                    Value::CountSeconds(seconds) => sample.encode_counter::<NoLabelSet, _, f64>(seconds, None)?,
                    Value::Gauge(value) => sample.encode_gauge(value)?,
                    Value::Histogram { sum, buckets } => {
                        let count = buckets.iter().map(|(_, count)| count).sum();
                        sample.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The process as the kernel and the log see it, now.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    version: &'static str,
    uptime_s: f64,
    resident_bytes: Option<f64>,
    cpu_s: Option<f64>,
    threads: Option<f64>,
    open_files: Option<f64>,
    log: crate::log::Counts,
}

impl Process {
    /// Looks.
    pub fn look(version: &'static str, uptime: std::time::Duration) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |name: &str| -> Option<f64> {
            status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
        };
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).ok();
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        Self {
            version,
            uptime_s: uptime.as_secs_f64(),
            resident_bytes: number("VmRSS:").map(|kib| kib * 1024.0),
            cpu_s: usage.map(|usage| seconds(usage.user_time()) + seconds(usage.system_time())),
            threads: number("Threads:"),
            open_files: std::fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count() as f64),
            log: crate::log::counts(),
        }
    }
}

/// The metrics of [`Process`].
pub const PROCESS: &[Metric<Process>] = &[
    Metric {
        name: "build",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Always 1; the label says which version runs",
        read: |p| vec![(Some(("version", p.version.to_owned())), Value::Gauge(1.0))],
    },
    Metric {
        name: "uptime",
        unit: In::Seconds,
        kind: Kind::Gauge,
        help: "How long the process has been running",
        read: |p| one(Value::Gauge(p.uptime_s)),
    },
    Metric {
        name: "process_resident",
        unit: In::Bytes,
        kind: Kind::Gauge,
        help: "Resident memory of the process",
        read: |p| known(p.resident_bytes),
    },
    Metric {
        name: "process_cpu",
        unit: In::Seconds,
        kind: Kind::Counter,
        help: "CPU time of the process, user and system together",
        read: |p| p.cpu_s.map(|s| (None, Value::CountSeconds(s))).into_iter().collect(),
    },
    Metric {
        name: "process_threads",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Threads of the process",
        read: |p| known(p.threads),
    },
    Metric {
        name: "process_open_files",
        unit: In::Number,
        kind: Kind::Gauge,
        help: "Open file descriptors of the process",
        read: |p| known(p.open_files),
    },
    Metric {
        name: "log_lines",
        unit: In::Number,
        kind: Kind::Counter,
        help: "Errors and warnings, lines that were left out because their place said too many, and those that standard error did not take",
        read: |p| {
            let count = |what: &str, n| (Some(("what", what.to_owned())), Value::Count(n));
            let log = p.log;
            vec![
                count("error", log.errors),
                count("warning", log.warnings),
                count("suppressed", log.suppressed),
                count("lost", log.lost),
            ]
        },
    },
];

/// Holds a page of documentation against what is served: the rows between `<!-- NAME -->` and `<!-- /NAME -->` must be `rows`.
///
/// With `FARSIDE_BLESS` in the environment the file is written instead.
///
/// # Errors
/// A sentence with the command that mends it.
pub fn check_document(path: &std::path::Path, name: &str, rows: &str) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let from = text.find(&begin).ok_or_else(|| format!("{} has no {begin}", path.display()))? + begin.len();
    let to = text[from..].find(&end).ok_or_else(|| format!("{} has no {end}", path.display()))? + from;
    if &text[from..to] == rows {
        return Ok(());
    }
    if std::env::var_os("FARSIDE_BLESS").is_some() {
        let text = format!("{}{rows}{}", &text[..from], &text[to..]);
        return std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()));
    }
    Err(format!("{} is not what is served ({name}): run this test with FARSIDE_BLESS=1 and read the difference", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk {
        reads: u64,
        free: Option<f64>,
    }

    const DISK: &[Metric<Disk>] = &[
        Metric {
            name: "reads",
            unit: In::Bytes,
            kind: Kind::Counter,
            help: "Reads",
            read: |d| vec![(Some(("kind", "a\"b\n".to_owned())), Value::Count(d.reads))],
        },
        Metric { name: "free", unit: In::Bytes, kind: Kind::Gauge, help: "Free", read: |d| known(d.free) },
        Metric {
            name: "took",
            unit: In::Seconds,
            kind: Kind::Histogram,
            help: "Took",
            read: |_| one(Value::Histogram { sum: 2.5, buckets: vec![(0.5, 1), (1.0, 2), (f64::MAX, 3)] }),
        },
    ];

    #[test]
    fn a_page_is_open_metrics_under_the_documented_names() {
        let mut page = Page::default();
        page.add(DISK, &[("disk", "x")], &Disk { reads: 7, free: None });
        page.add(DISK, &[("disk", "y")], &Disk { reads: 8, free: Some(1.5) });
        let text = page.text();
        for line in [
            "# TYPE farside_reads_bytes counter",
            "# UNIT farside_reads_bytes bytes",
            "farside_reads_bytes_total{disk=\"x\",kind=\"a\\\"b\\n\"} 7",
            "farside_free_bytes{disk=\"y\"} 1.5",
            "farside_took_seconds_bucket{le=\"1.0\",disk=\"x\"} 3",
            "farside_took_seconds_bucket{le=\"+Inf\",disk=\"x\"} 6",
            "farside_took_seconds_sum{disk=\"y\"} 2.5",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert_eq!(text.matches("# HELP farside_free").count(), 1, "{text}");
        assert!(!text.contains("farside_free_bytes{disk=\"x\""), "unknown is not zero: {text}");
        for metric in DISK {
            assert!(text.contains(&metric.full_name()), "{}", metric.full_name());
        }
    }

    #[test]
    fn the_process_is_seen() {
        let mut page = Page::default();
        page.add(PROCESS, &[], &Process::look("1.2.3", std::time::Duration::from_secs(3)));
        let text = page.text();
        assert!(text.contains("farside_build{version=\"1.2.3\"} 1.0"), "{text}");
        for metric in PROCESS {
            assert!(text.contains(&metric.full_name()), "{} in {text}", metric.full_name());
        }
    }
}
