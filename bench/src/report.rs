//! What was measured, as tables and as JSON, and how it stands to the goals.

use std::collections::BTreeMap;
use std::fmt;
use std::process::{Command, Stdio};

use farside_vm::INSTRUCTION_NS;
use farside_vm::counted::{Counts, Load};
use serde::Serialize;

use crate::drill;
use crate::measure::Cost;
use crate::vm;

/// One line of the table of copies.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) tool: &'static str,
    pub(crate) seconds: f64,
    cpu_seconds: f64,
    /// CPU seconds per GB (10⁹ bytes) of what was copied or changed.
    cpu_seconds_per_gb: f64,
    peak_rss_mib: u64,
    /// Its seconds ÷ Farside's.
    farside_is_faster_by: f64,
}

/// One workload on one tap.
#[derive(Debug, Serialize)]
pub(crate) struct TapRow {
    pub(crate) workload: String,
    pub(crate) server: &'static str,
    pub(crate) iops: f64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

/// Paced writes of a source beside others.
#[derive(Debug, Serialize)]
pub(crate) struct DrillRow {
    /// What else is written to.
    pub(crate) beside: &'static str,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) lag_median_ms: u64,
    pub(crate) lag_max_ms: u64,
    /// What the other one did.
    pub(crate) other_iops: Option<f64>,
}

/// How soon an open point answers.
#[derive(Debug, Serialize)]
pub(crate) struct OpenRow {
    pub(crate) volume_bytes: u64,
    /// Of the group.
    pub(crate) points: u64,
    /// From the start of the command, with cold caches where the user may drop them.
    pub(crate) first_byte_ms: f64,
}

/// One workload on one device of an emulated machine.
#[derive(Debug, Serialize)]
pub(crate) struct VmRow {
    workload: String,
    server: &'static str,
    load: Load,
    /// Of the thread that serves, for each request that an operation becomes; not of the disk itself, and not where it was killed.
    system_calls: Option<f64>,
    sleeps: Option<f64>,
    /// Who ran for how long: percent of one processor.
    processor_percent: BTreeMap<String, f64>,
}

impl VmRow {
    /// `requests`: that one operation becomes. `ran`: for how many nanoseconds, by name.
    pub(crate) fn new(
        workload: String,
        server: &'static str,
        load: Load,
        requests: u64,
        counts: Option<Counts>,
        ran: &BTreeMap<String, u64>,
    ) -> Self {
        let processor_percent = percents(&load, ran);
        let all = (load.operations * requests) as f64;
        let each = |count: fn(&Counts) -> u64| counts.as_ref().map(|counts| count(counts) as f64 / all);
        let (system_calls, sleeps) = (each(|counts| counts.system_calls), each(|counts| counts.sleeps));
        Self { workload, server, load, system_calls, sleeps, processor_percent }
    }
}

impl fmt::Display for VmRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { iops, p50_us, p99_us, p999_us, max_us, .. } = self.load;
        let count = |count: Option<f64>| count.map_or_else(String::new, |count| format!("{count:.2}"));
        write!(
            f,
            "{:<20} {:<34} {iops:>8.0} {p50_us:>8} {p99_us:>8} {p999_us:>9} {max_us:>9} {:>13} {:>9}",
            self.workload,
            self.server,
            count(self.system_calls),
            count(self.sleeps)
        )
    }
}

/// What each request of a workload costs, on a machine with one processor whose clock goes by instructions: whoever else uses this
/// machine changes nothing.
#[derive(Debug, Serialize)]
pub(crate) struct Instructions {
    workload: &'static str,
    server: &'static str,
    requests: u64,
    /// Of the thread that serves, with the kernel's work for it; where there is one.
    thread: Option<f64>,
    /// Of everything: also of who asks, and of who replicates.
    all: f64,
    /// Bytes that the kernel copied between who asks and the thread that serves, for each that was read or written.
    copied: Option<f64>,
    load: Load,
    processor_percent: BTreeMap<String, f64>,
}

impl Instructions {
    /// `requests`: that one operation becomes. `ran`: for how many nanoseconds, by name.
    pub(crate) fn new(
        workload: &'static str,
        server: &'static str,
        load: Load,
        requests: u64,
        (thread_ns, all_ns): (Option<u64>, u64),
        copied: Option<f64>,
        ran: &BTreeMap<String, u64>,
    ) -> Self {
        let requests = load.operations * requests;
        let each = |ns: u64| (ns / INSTRUCTION_NS) as f64 / requests as f64;
        let (thread, all) = (thread_ns.map(each), each(all_ns));
        let processor_percent = percents(&load, ran);
        Self { workload, server, requests, thread, all, copied, load, processor_percent }
    }
}

/// Who ran, in percent of one processor.
fn percents(load: &Load, ran: &BTreeMap<String, u64>) -> BTreeMap<String, f64> {
    let percent_of_ns = 100.0 * load.iops / (load.operations.max(1) as f64 * 1e9);
    let percents = ran.iter().map(|(name, ns)| (name.clone(), *ns as f64 * percent_of_ns));
    percents.filter(|(_, percent)| *percent >= 0.5).collect()
}

/// IOPS of each device divided by the disk's own and by bare ublk's.
fn print_ratios(where_: &str, rows: Vec<(&str, &'static str, &Load)>) {
    let iops = |workload: &str, server: &str| {
        median(rows.iter().filter(|row| (row.0, row.1) == (workload, server)).map(|row| row.2.iops).collect())
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut lines = Vec::new();
    for (workload, server, _) in rows.iter().filter(|row| seen.insert((row.0, row.1))) {
        let over = |base| Some(iops(workload, server)? / iops(workload, base)?);
        let show = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let (disk, bare, as_we) = (over(vm::DISK), over(vm::BARE), over(vm::BARE_AS_WE));
        if disk.or(bare).is_some() {
            lines.push(format!("{workload:<20} {server:<34} {:>12} {:>12} {:>12}", show(disk), show(bare), show(as_we)));
        }
    }
    if !lines.is_empty() {
        println!(
            "\nIOPS in relation, {where_}\n{:<20} {:<34} {:>12} {:>12} {:>12}",
            "workload", "device", "÷ disk", "÷ bare ublk", "÷ w. copied"
        );
        lines.iter().for_each(|line| println!("{line}"));
    }
}

fn print_percents(workload: &str, server: &str, percents: &BTreeMap<String, f64>) {
    let mut ran: Vec<(&String, &f64)> = percents.iter().collect();
    ran.sort_by(|a, b| b.1.total_cmp(a.1));
    let ran: Vec<String> = ran.into_iter().map(|(name, percent)| format!("{name} {percent:.0}")).collect();
    println!("{workload:<20} {server:<34} {}", ran.join(", "));
}

/// How long operations took: a column for each power of two of microseconds, a bar for its share.
fn print_histograms(where_: &str, rows: Vec<(&str, &'static str, &Load)>) {
    let mut devices: Vec<(&str, &str)> = Vec::new();
    for &(workload, server, _) in &rows {
        if !devices.contains(&(workload, server)) {
            devices.push((workload, server));
        }
    }
    if devices.is_empty() {
        return;
    }
    println!("\nlatencies, {where_}; columns: each a power of two, from 16 µs (and below) to 8 s (and above)");
    println!("bars: shares up to 0.01 %, 0.1 %, 1 %, 3 %, 10 %, 30 %, 60 %, 100 %");
    println!("{:<20} {:<34} {:<20}", "workload", "device", "16µs  1ms  32ms 1s");
    for (workload, server) in devices {
        let of = rows.iter().filter(|row| (row.0, row.1) == (workload, server));
        println!("{workload:<20} {server:<34} {}", bars(of.flat_map(|row| &row.2.histogram)));
    }
}

/// One letter for each power of two.
fn bars<'a>(steps: impl Iterator<Item = &'a [u64; 2]>) -> String {
    const SHARES: [(f64, char); 8] =
        [(1e-4, '▁'), (1e-3, '▂'), (0.01, '▃'), (0.03, '▄'), (0.1, '▅'), (0.3, '▆'), (0.6, '▇'), (1.0, '█')];
    let mut columns = [0; 20];
    for [from, count] in steps {
        columns[(from.max(&16).ilog2() as usize - 4).min(19)] += count;
    }
    let all: u64 = columns.iter().sum();
    let bar = |count: &u64| {
        let share = *count as f64 / all as f64;
        SHARES.iter().find(|(most, _)| share <= *most).map_or('█', |bar| bar.1)
    };
    columns.iter().map(|count| if *count == 0 { '·' } else { bar(count) }).collect()
}

/// Lag while something writes at a rate.
#[derive(Debug, Serialize)]
pub(crate) struct LagRow {
    pub(crate) asked_mib_per_s: u64,
    pub(crate) written_mib_per_s: f64,
    pub(crate) lag_median_ms: u64,
    pub(crate) lag_max_ms: u64,
    pub(crate) backlog_max_mib: u64,
    pub(crate) points: u64,
}

/// A goal, and what was measured.
#[derive(Debug, Serialize)]
struct Goal {
    what: &'static str,
    wanted: String,
    measured: f64,
    met: bool,
}

const FIRST_BYTE: &str = "first byte of an open point, ms, at any size and history";
const WARM: &str = "this user may not drop the page cache: some find in it what others left there";

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Where, of what, and beside which versions of others.
    measured_on: BTreeMap<&'static str, String>,
    size_bytes: u64,
    /// Whether what was measured found nothing in it that the measure before had left there.
    page_cache_dropped: bool,
    rows: Vec<Row>,
    /// Bytes on the wire per changed byte, of each delta.
    wire_per_changed_byte: Vec<(&'static str, f64)>,
    tap: Vec<TapRow>,
    lag: Vec<LagRow>,
    drills: Vec<DrillRow>,
    opened: Vec<OpenRow>,
    vm: Vec<VmRow>,
    instructions: Vec<Instructions>,
    /// How the data of ublk's devices came and went.
    data_paths: BTreeMap<&'static str, String>,
    goals: Vec<Goal>,
    left_out: Vec<String>,
}

/// What there is of the machine and its tools to say, each in a line; without those that are not there.
fn versions() -> BTreeMap<&'static str, String> {
    let line = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).stdin(Stdio::null()).output().ok().filter(|output| output.status.success())?;
        let said = String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned();
        (!said.is_empty()).then_some(said)
    };
    let here = env!("CARGO_MANIFEST_DIR");
    let asked: [(&'static str, &str, &[&str]); 8] = [
        ("source tree", "git", &["-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]),
        ("kernel", "uname", &["-srm"]),
        ("rsync", "rsync", &["--version"]),
        ("restic", "restic", &["version"]),
        ("borg", "borg", &["--version"]),
        ("qemu-img", "qemu-img", &["--version"]),
        ("fio", "fio", &["--version"]),
        ("nbdkit", "nbdkit", &["--version"]),
    ];
    let mut versions: BTreeMap<_, _> =
        asked.into_iter().filter_map(|(what, program, arguments)| Some((what, line(program, arguments)?))).collect();
    let processors = std::thread::available_parallelism().map_or_else(|error| error.to_string(), |count| count.to_string());
    versions.insert("processors", processors);
    versions
}

impl Report {
    pub(crate) fn new(size_bytes: u64, page_cache_dropped: bool) -> Self {
        Self {
            measured_on: versions(),
            size_bytes,
            page_cache_dropped,
            rows: Vec::new(),
            wire_per_changed_byte: Vec::new(),
            tap: Vec::new(),
            lag: Vec::new(),
            drills: Vec::new(),
            opened: Vec::new(),
            vm: Vec::new(),
            instructions: Vec::new(),
            data_paths: BTreeMap::new(),
            goals: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// The first line of each `what` must be Farside's.
    pub(crate) fn copied(&mut self, what: &'static str, tool: &'static str, cost: Cost, bytes: u64) {
        let ours = self.seconds(what, "farside").unwrap_or(cost.seconds);
        self.rows.push(Row {
            what,
            tool,
            seconds: cost.seconds,
            cpu_seconds: cost.cpu_seconds,
            cpu_seconds_per_gb: cost.cpu_seconds / (bytes as f64 / 1e9),
            peak_rss_mib: cost.peak_rss_kib >> 10,
            farside_is_faster_by: cost.seconds / ours,
        });
    }

    pub(crate) fn on_the_wire(&mut self, what: &'static str, bytes_per_changed: f64) {
        self.wire_per_changed_byte.push((what, bytes_per_changed));
    }

    pub(crate) fn tapped(&mut self, row: TapRow) {
        self.tap.push(row);
    }

    pub(crate) fn drilled(&mut self, row: DrillRow) {
        self.drills.push(row);
    }

    pub(crate) fn lagged(&mut self, row: LagRow) {
        self.lag.push(row);
    }

    pub(crate) fn opened(&mut self, row: OpenRow) {
        self.opened.push(row);
    }

    /// Said at once: all of it takes long, and what was measured should not be lost with it.
    pub(crate) fn in_vm(&mut self, row: VmRow) {
        eprintln!("{row}");
        self.vm.push(row);
    }

    pub(crate) fn counted(&mut self, instructions: Instructions) {
        self.instructions.push(instructions);
    }

    /// How the data of a device comes and goes.
    pub(crate) fn data_path(&mut self, server: &'static str, path: String) {
        self.data_paths.insert(server, path);
    }

    /// What a server did at a workload, round by round.
    fn rounds(&self, workload: &str, server: &str) -> Vec<&VmRow> {
        self.vm.iter().filter(|row| row.workload == workload && row.server == server).collect()
    }

    fn judge_vm(&mut self) {
        let workloads: std::collections::BTreeSet<&str> =
            self.vm.iter().filter(|row| row.server == vm::DISK).map(|row| row.workload.as_str()).collect();
        // Rounds of two servers at the same workload, in pairs.
        let pairs = |of: fn(&VmRow, &VmRow) -> Option<f64>, server: &str, base: &str| {
            let of_workload = |workload: &&str| {
                let (ours, bare) = (self.rounds(workload, server), self.rounds(workload, base));
                ours.into_iter().zip(bare).filter_map(|(ours, bare)| of(ours, bare)).collect::<Vec<_>>()
            };
            median(workloads.iter().flat_map(of_workload).collect())
        };
        let calls = pairs(|ours, bare| Some(ours.system_calls? - bare.system_calls?), vm::REPLICATING, vm::BARE);
        let iops = |ours: &VmRow, bare: &VmRow| Some(ours.load.iops / bare.load.iops);
        let (idle, replicating) = (pairs(iops, vm::PAUSED, vm::BARE), pairs(iops, vm::REPLICATING, vm::BARE));
        let (same_path, as_rublk) = (pairs(iops, vm::PAUSED, vm::BARE_AS_WE), pairs(iops, vm::PAUSED, vm::BARE_COPY));
        let paced = format!("write-4096-1, {}/s", vm::PACE);
        let p999 = |server| {
            let turns = self.rounds(&paced, server);
            percentile(turns.iter().flat_map(|row| &row.load.histogram).copied(), 0.999)
        };
        let cuts = p999(vm::CUTS).zip(p999(vm::NO_CUTS)).map(|(cuts, none)| cuts / none);
        let pause = |server| median(self.rounds("write-4096-1", server).iter().map(|row| row.load.max_us as f64 / 1e6).collect());
        let (pause, restarted) = (pause(vm::KILLED), pause(vm::RESTARTED));
        self.judge_by_instructions();
        self.at_most("system calls per request, beyond bare ublk's, replicating", 1.0, calls);
        self.at_least("IOPS ÷ those of bare ublk that copies, not replicating, emulated", 0.85, as_rublk);
        self.at_least("IOPS ÷ bare ublk's, not replicating, emulated", 0.85, idle);
        self.at_least("the same, ÷ bare ublk's with writes copied", 0.85, same_path);
        self.at_least("IOPS ÷ bare ublk's, replicating, emulated", 0.85, replicating);
        self.at_most("p99.9 of paced writes around cuts ÷ without, by instructions", 1.5, cuts);
        self.at_most("seconds that a write waits for a killed daemon, emulated", 1.0, pause);
        self.at_most("the same, of three kills the longest, with systemd", 1.0, restarted);
    }

    /// How all devices stand to bare ublk, workload by workload, on the machine that nobody else's work disturbs.
    fn judge_by_instructions(&mut self) {
        let of = |workload: &str, server: &str| {
            let mut rows = self.instructions.iter();
            rows.find(|row| row.workload == workload && row.server == server).map(|row| row.load.iops)
        };
        let workloads: std::collections::BTreeSet<&str> = self.instructions.iter().map(|row| row.workload).collect();
        let ratio = |server: &str, base: &str| {
            median(workloads.iter().filter_map(|workload| Some(of(workload, server)? / of(workload, base)?)).collect())
        };
        let (idle, replicating) = (ratio(vm::PAUSED, vm::BARE), ratio(vm::REPLICATING, vm::BARE));
        let (same_path, as_rublk) = (ratio(vm::PAUSED, vm::BARE_AS_WE), ratio(vm::PAUSED, vm::BARE_COPY));
        self.at_least("IOPS ÷ those of bare ublk that copies, not replicating, one processor", 0.85, as_rublk);
        self.at_least("IOPS ÷ bare ublk's, not replicating, one processor", 0.85, idle);
        self.at_least("the same, ÷ bare ublk's with writes copied", 0.85, same_path);
        self.at_least("IOPS ÷ bare ublk's, replicating, one processor", 0.85, replicating);
        let copied = |server: &str| {
            let rows = self.instructions.iter().filter(|row| row.server == server);
            rows.filter_map(|row| row.copied).max_by(f64::total_cmp)
        };
        let more_than = |base: &str| {
            let beyond = |server: &str| Some(copied(server)? - copied(base)?);
            [vm::PAUSED, vm::REPLICATING].into_iter().filter_map(beyond).max_by(f64::total_cmp)
        };
        let (as_rublk, more) = (more_than(vm::BARE_COPY), more_than(vm::BARE));
        let seen = copied(vm::BARE_COPY); // the witness: copies are counted
        self.at_least("bytes copied for each byte, bare ublk that copies", 1.0, seen);
        self.at_most("bytes copied for each byte, beyond those, at most", 0.01, as_rublk);
        self.at_most("bytes copied for each byte, beyond bare ublk's, at most", 0.01, more);
    }

    /// Something that could not be measured here, and why.
    pub(crate) fn left_out(&mut self, what: impl Into<String>) {
        self.left_out.push(what.into());
    }

    fn seconds(&self, what: &str, tool: &str) -> Option<f64> {
        self.rows.iter().find(|r| r.what == what && r.tool == tool).map(|r| r.seconds)
    }

    fn tap_row(&self, workload: &str, server: &str) -> Option<&TapRow> {
        self.tap.iter().find(|r| r.workload == workload && r.server == server)
    }

    fn at_least(&mut self, what: &'static str, goal: f64, measured: Option<f64>) {
        let Some(measured) = measured else { return };
        self.goals.push(Goal { what, wanted: format!("≥ {goal}"), measured, met: measured >= goal });
    }

    fn at_most(&mut self, what: &'static str, goal: f64, measured: Option<f64>) {
        let Some(measured) = measured else { return };
        self.goals.push(Goal { what, wanted: format!("≤ {goal}"), measured, met: measured <= goal });
    }

    fn judge(&mut self) {
        let times = |report: &Self, what: &str, tool: &str| Some(report.seconds(what, tool)? / report.seconds(what, "farside")?);
        let wire = |report: &Self, what: &str| report.wire_per_changed_byte.iter().find(|w| w.0 == what).map(|w| w.1);
        let rss = self.rows.iter().filter(|r| r.tool == "farside").map(|r| r.peak_rss_mib).max();
        self.at_least("first sync, times as fast as restic", 2.0, times(self, "first sync", "restic"));
        self.at_least("first sync, share of the disk's own read rate", 0.5, times(self, "first sync", "dd, read only"));
        self.at_least("scattered delta, times as fast as restic", 10.0, times(self, "scattered", "restic"));
        self.at_least("scattered delta, times as fast as rsync", 20.0, times(self, "scattered", "rsync --inplace"));
        self.at_least("clustered delta, times as fast as restic", 3.0, times(self, "clustered", "restic"));
        self.at_least("restore, times as fast as restic", 2.0, times(self, "restore", "restic"));
        self.at_least("restore from a bucket, times as fast as restic", 2.0, times(self, "from a bucket", "restic"));
        let raw = times(self, "from a bucket", "curl, raw GETs");
        self.at_least("restore from a bucket, share of the speed of raw GETs", 0.6, raw);
        let slowest = self.opened.iter().map(|row| row.first_byte_ms).reduce(f64::max);
        match self.page_cache_dropped {
            true => self.at_most(FIRST_BYTE, 100.0, slowest),
            false if slowest.is_some() => self.left_out(format!("{FIRST_BYTE}: not judged, since {WARM}")),
            false => {}
        }
        self.at_most("wire bytes per changed byte, scattered 4 KiB", 1.5, wire(self, "scattered"));
        self.at_most("wire bytes per changed byte, clustered", 1.05, wire(self, "clustered"));
        self.at_most("peak RSS of each process, MiB", 128.0, rss.map(|mib| mib as f64));
        let iops = |report: &Self, workload: &str| {
            Some(report.tap_row(workload, "farside, idle")?.iops / report.tap_row(workload, "qemu-nbd")?.iops)
        };
        self.at_least("tap IOPS ÷ qemu-nbd's, random 4 KiB writes", 0.9, iops(self, "randwrite 4k QD32"));
        self.at_least("tap IOPS ÷ qemu-nbd's, random 4 KiB reads", 0.9, iops(self, "randread 4k QD32"));
        let cuts = |report: &Self| {
            let of = |server| report.tap_row("randwrite 4k paced", server).map(|r| r.p999_us);
            Some(of("farside, a cut every 200 ms")? / of("farside, no cuts")?)
        };
        self.at_most("p99.9 of paced writes around cuts ÷ without", 2.0, cuts(self));
        self.judge_drills();
        self.judge_vm();
    }

    fn judge_drills(&mut self) {
        let turns = |beside: &str, of: fn(&DrillRow) -> f64| {
            self.drills.iter().filter(move |row| row.beside == beside).map(of).collect::<Vec<_>>()
        };
        let ratio = |base: &str, of: fn(&DrillRow) -> f64| {
            median(turns(drill::DRILL, of).into_iter().zip(turns(base, of)).map(|(with, without)| with / without).collect())
        };
        let (p99, as_other) = (ratio(drill::NONE, |row| row.p99_us), ratio(drill::OTHER, |row| row.p99_us));
        let lag = ratio(drill::OTHER, |row| row.lag_median_ms.max(1) as f64);
        self.at_most("p99 of a source's writes with a drill ÷ without", 1.05, p99);
        self.at_most("the same ÷ with another server as busy", 1.05, as_other);
        self.at_most("lag with a drill ÷ with another server as busy", 1.05, lag);
    }

    pub(crate) fn print(&mut self) {
        self.judge();
        let measured_on: Vec<_> = self.measured_on.iter().map(|(what, version)| format!("{what}: {version}")).collect();
        println!("{}", measured_on.join("; "));
        if !self.rows.is_empty() {
            let cache = if self.page_cache_dropped { "page cache dropped before each line" } else { WARM };
            println!("\n{:.1} GiB; {cache}\n", self.size_bytes as f64 / f64::from(1 << 30));
            println!(
                "{:<12} {:<26} {:>9} {:>9} {:>10} {:>9} {:>12}",
                "what", "tool", "seconds", "CPU s", "CPU s/GB", "RSS MiB", "÷ farside"
            );
            for r in &self.rows {
                println!(
                    "{:<12} {:<26} {:>9.2} {:>9.2} {:>10.2} {:>9} {:>11.2}×",
                    r.what, r.tool, r.seconds, r.cpu_seconds, r.cpu_seconds_per_gb, r.peak_rss_mib, r.farside_is_faster_by
                );
            }
            for (what, ratio) in &self.wire_per_changed_byte {
                println!("bytes on the wire per changed byte, {what}: {ratio:.2}");
            }
        }
        if !self.opened.is_empty() {
            println!("\n{:>12} {:>9} {:>14}", "volume GiB", "points", "first byte ms");
            for row in &self.opened {
                println!("{:>12} {:>9} {:>14.1}", row.volume_bytes >> 30, row.points, row.first_byte_ms);
            }
        }
        if !self.tap.is_empty() {
            println!(
                "\n{:<22} {:<30} {:>9} {:>9} {:>9} {:>9} {:>10} {:>9}",
                "workload", "server", "IOPS", "mean µs", "p50 µs", "p99 µs", "p99.9 µs", "max µs"
            );
            self.tap.iter().for_each(|row| println!("{row}"));
        }
        if !self.lag.is_empty() {
            println!(
                "\n{:>12} {:>14} {:>14} {:>11} {:>13} {:>7}",
                "asked MiB/s", "written MiB/s", "median lag ms", "max lag ms", "max backlog", "points"
            );
            for r in &self.lag {
                println!(
                    "{:>12} {:>14.1} {:>14} {:>11} {:>9} MiB {:>7}",
                    r.asked_mib_per_s, r.written_mib_per_s, r.lag_median_ms, r.lag_max_ms, r.backlog_max_mib, r.points
                );
            }
        }
        if !self.drills.is_empty() {
            println!(
                "\n{:<20} {:>9} {:>9} {:>10} {:>11} {:>9} {:>11}",
                "written to beside", "p50 µs", "p99 µs", "p99.9 µs", "lag med ms", "max ms", "other IOPS"
            );
            for row in &self.drills {
                let DrillRow { beside, p50_us, p99_us, p999_us, lag_median_ms, lag_max_ms, other_iops } = row;
                let other = other_iops.map_or_else(String::new, |iops| format!("{iops:.0}"));
                println!(
                    "{beside:<20} {p50_us:>9.0} {p99_us:>9.0} {p999_us:>10.0} {lag_median_ms:>11} {lag_max_ms:>9} {other:>11}"
                );
            }
        }
        if !self.vm.is_empty() {
            println!(
                "\nin an emulated machine\n{:<20} {:<34} {:>8} {:>8} {:>8} {:>9} {:>9} {:>13} {:>9}",
                "workload", "device", "IOPS", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "calls/request", "sleeps/r."
            );
            self.vm.iter().for_each(|row| println!("{row}"));
        }
        if !self.instructions.is_empty() {
            println!(
                "\nin an emulated machine of one processor whose clock goes by instructions\n{:<20} {:<34} {:>9} {:>13} {:>12} {:>9} {:>8} {:>8} {:>8} {:>9}",
                "workload", "device", "requests", "of its thread", "of all", "copied", "IOPS", "p50 µs", "p99 µs", "p99.9 µs"
            );
            for Instructions { workload, server, requests, thread, all, copied, load, .. } in &self.instructions {
                let Load { iops, p50_us, p99_us, p999_us, .. } = load;
                let thread = thread.map_or_else(String::new, |thread| format!("{thread:.0}"));
                let copied = copied.map_or_else(String::new, |copied| format!("{copied:.3}"));
                println!(
                    "{workload:<20} {server:<34} {requests:>9} {thread:>13} {all:>12.0} {copied:>9} {iops:>8.0} {p50_us:>8} {p99_us:>8} {p999_us:>9}"
                );
            }
        }
        let timed = self.vm.iter().map(|row| (row.workload.as_str(), row.server, &row.load));
        print_ratios("two emulated processors; median of the rounds", timed.collect());
        let counted = self.instructions.iter().map(|row| (row.workload, row.server, &row.load));
        print_ratios("one emulated processor whose clock goes by instructions", counted.collect());
        if !self.vm.is_empty() || !self.instructions.is_empty() {
            self.data_paths.iter().for_each(|(server, path)| println!("data path of {server}: {path}"));
            println!("\nwho ran, in percent of one processor");
            self.vm.iter().for_each(|row| print_percents(&row.workload, row.server, &row.processor_percent));
            self.instructions.iter().for_each(|row| print_percents(row.workload, row.server, &row.processor_percent));
        }
        let timed = self.vm.iter().map(|row| (row.workload.as_str(), row.server, &row.load));
        print_histograms("two emulated processors; all rounds", timed.collect());
        let counted = self.instructions.iter().map(|row| (row.workload, row.server, &row.load));
        print_histograms("one emulated processor whose clock goes by instructions", counted.collect());
        println!("\n{:<58} {:>8} {:>10}", "goal", "wanted", "measured");
        for g in &self.goals {
            println!("{:<58} {:>8} {:>10.2}  {}", g.what, g.wanted, g.measured, if g.met { "met" } else { "MISSED" });
        }
        self.left_out.iter().for_each(|line| println!("left out: {line}"));
    }
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let half = numbers.len() / 2;
    match numbers.len() % 2 {
        1 => numbers.get(half).copied(),
        _ => Some((numbers.get(half.checked_sub(1)?)? + numbers.get(half)?) / 2.0),
    }
}

impl fmt::Display for TapRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<22} {:<30} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>10.0} {:>9.0}",
            self.workload, self.server, self.iops, self.mean_us, self.p50_us, self.p99_us, self.p999_us, self.max_us
        )
    }
}

/// Of all numbers in some histograms together, each step with its begin and how many lie in it: between the begins of two steps as far as
/// the number is between the first and the last of its step. None if there are no numbers.
fn percentile(steps: impl Iterator<Item = [u64; 2]>, share: f64) -> Option<f64> {
    let mut all: BTreeMap<u64, u64> = BTreeMap::new();
    steps.for_each(|[step, count]| *all.entry(step).or_default() += count);
    let mut left = (all.values().sum::<u64>() as f64 * share) as u64;
    for (step, count) in all {
        if left < count {
            let width = if step < 8 { 1 } else { 1 << (step.ilog2() - 3) };
            return Some(step as f64 + f64::from(width) * left as f64 / count as f64);
        }
        left -= count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_thousand_is_counted_over_all_turns() {
        let share = |turns: &[[u64; 2]]| percentile(turns.iter().copied(), 0.999);
        assert_eq!(share(&[]), None);
        assert_eq!(share(&[[5, 1]]), Some(5.0));
        // A long one in one turn is one of 2000; of two it is the second.
        assert_eq!(share(&[[64, 999], [1024, 1], [64, 1000]]), Some(64.0 + 8.0 * 1998.0 / 1999.0));
        assert_eq!(share(&[[64, 998], [1024, 2], [64, 998], [2048, 2]]), Some(2048.0));
    }

    #[test]
    fn a_report_says_what_was_measured_and_where() {
        let report = serde_json::to_value(Report::new(0, true)).expect("plain data");
        for what in ["kernel", "processors"] {
            assert!(report["measured_on"][what].as_str().is_some_and(|said| !said.is_empty()), "{what}: {report}");
        }
    }

    #[test]
    fn a_cold_goal_is_judged_only_where_it_was_cold() {
        let judged = |cold| {
            let mut report = Report::new(0, cold);
            report.opened(OpenRow { volume_bytes: 1 << 30, points: 100, first_byte_ms: 40.0 });
            report.print();
            (report.goals.len(), report.left_out.len())
        };
        assert_eq!((judged(true), judged(false)), ((1, 0), (0, 1)));
    }

    #[test]
    fn devices_are_judged_by_the_median_of_their_workloads() {
        let mut report = Report::new(0, true);
        for (workload, factor) in [("write-4096-1", 0.5), ("write-4096-32", 0.9), ("read-4096-32", 1.0)] {
            for (server, iops) in [(vm::DISK, 3000.0), (vm::BARE, 1000.0), (vm::REPLICATING, 1000.0 * factor)] {
                let load = Load {
                    operations: 10,
                    iops,
                    mean_us: 1.0,
                    p50_us: 1,
                    p99_us: 1,
                    p999_us: 1,
                    max_us: 1,
                    histogram: vec![[1, 10]],
                    run_ns: 1,
                };
                report.counted(Instructions::new(workload, server, load, 1, (None, 16), None, &BTreeMap::new()));
            }
        }
        report.print();
        let [goal] = &report.goals[..] else { panic!("one goal was measured: {:?}", report.goals) };
        assert!(goal.met && (goal.measured - 0.9).abs() < 1e-9, "{goal:?}");
    }

    #[test]
    fn each_power_of_two_has_a_bar_and_rare_ones_are_seen() {
        assert_eq!(bars([[0, 1], [18, 1]].iter()), format!("█{}", "·".repeat(19)));
        let steps = [[32, 40_000], [36, 59_999], [1 << 20, 1], [64 << 20, 0]];
        assert_eq!(bars(steps.iter()), format!("·█{}▁···", "·".repeat(14)));
    }
}
