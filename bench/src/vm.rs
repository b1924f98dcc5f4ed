//! Real block devices in one emulated machine: the disk itself, ublk with nothing behind it, Farside, and the kernel's NBD client
//! over Farside's NBD server, on the same disk, in turns.
//!
//! Emulation distorts time, so what is firm is counted by the guest's kernel: system calls and sleeps of the thread that serves,
//! and, on a host of its own whose clock goes by instructions, the instructions of that thread and of all that ran, and the bytes
//! that the kernel copied to and from that thread. Ratios of times are believed where rounds agree; while it replicates, what encrypts and
//! compresses has the guest's two emulated processors, too. "Bare ublk" is a server of ours with nothing between driver and disk (no
//! tracking, no intent). "Copy" does what rublk's loop target does (which wants libclang to be built): the driver copies what is read
//! and what is written. The one without a word gives the disk the pages of the application. "Writes copied" has Farside's data path:
//! what is between these two is the price of L3 (a copy of each write before it is marked), and what is between it and Farside,
//! that of tracking.
//!
//! Writes around cuts are paced on a host of one processor whose clock goes by instructions, a nanosecond each, over a disk of the guest's own
//! memory that takes 100 µs by that clock, and the processor is never idle, so that the host's clock has no say: what their slowest wait for are
//! threads, ours and the kernel's, and not an emulator that also has a disk, a network and another machine to serve. Without cuts nothing else
//! runs there, and the slowest write of 3,000 takes hardly longer than the others: a machine without noise, and the hardest to be compared with.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use farside_tests::{usage, wait_for};
use farside_vm::counted::{Bare, Load, Threads, all_ran, copied, load, never_idle, ran};
use farside_vm::gateway::Gateway;
use farside_vm::protected::{CLI, Host, Setup, VOLUME_MIB, is_quiet};
use farside_vm::{DiskSpec, Guest, INSTRUCTION_NS, Kernel, Machine, packages};

use crate::drbd;
use crate::measure::stand_aside;
use crate::report::{Instructions, Report, VmRow};

const DEVICE: &str = "/dev/farside/data";
const WORKLOADS: [&str; 5] = ["write-4096-1", "write-4096-32", "read-4096-32", "write-1048576-4", "sync-4096-1"];
/// Writes per second around cuts: well below what the slowest machine can do.
pub(crate) const PACE: u64 = 500;

/// Devices of bare ublk, and the options of their server.
const BARES: [(&str, &str); 3] = [(BARE, "pages queues=2"), (BARE_AS_WE, "queues=2"), (BARE_COPY, "copy queues=2")];

/// What runs on this machine and not in the guest.
const OUTSIDE: &str = "outside: ";

/// How often writes are paced without cuts and then around them. In turns, so that what else this machine does hits both alike, and
/// each as long as three workloads: of a thousand writes the slowest one says nothing of one in a thousand.
const CUT_TURNS: usize = 6;
const CUT_SECONDS: u64 = 3;
/// There an instruction takes so long: a processor of 1 GHz that completes one in each cycle.
const CUT_INSTRUCTION_NS: u64 = 1;
/// And there is this disk.
const TIMED_DISK: &str = "\
    d=/sys/kernel/config/nullb/timed; mount -t configfs none /sys/kernel/config 2>/dev/null; \
    mkdir $d && cd $d && echo 64 >size && echo 1 >memory_backed && echo 2 >irqmode && echo 100000 >completion_nsec && echo 1 >power && \
    ls /dev/timed";

/// Of the daemon, under one application.
const KILLS: u32 = 3;
/// Between a kill and the first question whether the daemon is back: to ask is a process or two in a guest that emulates every one of
/// their instructions, and what was measured beside such questions was mostly they.
const UNASKED: Duration = Duration::from_secs(8);

pub(crate) const DISK: &str = "disk";
pub(crate) const BARE: &str = "bare ublk";
pub(crate) const BARE_AS_WE: &str = "bare ublk, writes copied";
pub(crate) const BARE_COPY: &str = "bare ublk, copy";
pub(crate) const PAUSED: &str = "farside, not replicating";
pub(crate) const REPLICATING: &str = "farside, replicating";
pub(crate) const NO_CUTS: &str = "farside, no cuts";
pub(crate) const CUTS: &str = "farside, a cut every 200 ms";
pub(crate) const KILLED: &str = "farside, killed and started again";
pub(crate) const RESTARTED: &str = "farside, killed and started by systemd";
pub(crate) const NBD: &str = "farside, nbd-device";
pub(crate) const ERA: &str = "dm-era";
pub(crate) const DRBD_ALONE: &str = "drbd, without a peer";
pub(crate) const DRBD_A: &str = "drbd, peer, protocol A";
pub(crate) const DRBD_C: &str = "drbd, peer, protocol C";

/// The longest request of the devices: a write and a flush are two, and 1 MiB is, too.
fn requests_of(workload: &str) -> u64 {
    if workload.starts_with("sync") || workload.contains("-1048576-") { 2 } else { 1 }
}

/// What an operation reads or writes.
fn bytes_of(workload: &str) -> u64 {
    workload.split('-').nth(1).and_then(|bytes| bytes.parse().ok()).expect("KIND-BYTES-DEPTH")
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// The disk itself.
    Disk,
    /// ublk with nothing between driver and disk.
    Bare,
    /// Farside on ublk: not replicating, replicating, killed.
    Farside,
    /// Paced writes, without cuts and around them.
    Cuts,
    /// Farside behind the kernel's NBD client.
    NbdDevice,
    /// dm-era, which tracks changes of 4 MiB blocks and sends nothing.
    DmEra,
    /// DRBD: without a peer, and with one that it waits for (protocol C) or not (A).
    Drbd,
    /// Farside from its packages, whose daemon is killed again and again, and started again by systemd. Needs the packages:
    /// `cargo run --release -p xtask -- test --only packages`.
    Systemd,
    /// The instructions and the copied bytes that each request costs, of those that serve.
    Instructions,
}

/// What is to be measured.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// All if none.
    pub(crate) devices: Vec<Subject>,
    pub(crate) rounds: usize,
    /// Of each workload.
    pub(crate) seconds: u64,
}

/// What a host with systemd is made of.
const PACKAGES: &[&str] = &["farside", "farsided"];

impl Wanted {
    fn has(&self, device: Subject) -> bool {
        self.devices.is_empty() || self.devices.contains(&device)
    }
}

struct Bench<'a> {
    host: Host,
    data: String,
    wanted: &'a Wanted,
    report: &'a mut Report,
}

pub(crate) fn run(wanted: &Wanted, report: &mut Report) -> Result<()> {
    let setup = || {
        let setup = Setup::new(Kernel::Newest, &["ublk_drv", "nbd", "dm-era", "drbd", "null_blk"])
            .processors(2)
            .disk(DiskSpec::blank(drbd::NOTES, 16));
        drbd::prepare(setup)
    };
    if wanted.has(Subject::Systemd) {
        // Now, not after what takes ten minutes.
        for name in PACKAGES {
            packages::find(name).map_err(anyhow::Error::msg)?;
        }
    }
    if wanted.has(Subject::Instructions) {
        eprintln!("booting a host that counts instructions, and its gateway …");
        let mut bench = Bench::new(Host::with(setup().counting_instructions(INSTRUCTION_NS)), wanted, report);
        bench.count();
        bench.host.shut_down();
    }
    if wanted.has(Subject::Systemd) {
        eprintln!("booting a Debian with systemd, and its gateway …");
        let load = restarted_by_systemd(wanted.seconds);
        report.in_vm(VmRow::new("write-4096-1".to_owned(), RESTARTED, load, 1, None, &BTreeMap::new()));
    }
    if wanted.has(Subject::Cuts) {
        eprintln!(
            "booting a host whose clock goes by instructions, and its gateway: paced writes, without cuts and around them …"
        );
        let mut bench = Bench::new(Host::with(setup().processors(1).counting_instructions(CUT_INSTRUCTION_NS)), wanted, report);
        bench.data = bench.host.guest.run(TIMED_DISK).trim().to_owned();
        never_idle(&mut bench.host.guest);
        bench.around_cuts()?;
        bench.host.shut_down();
    }
    if wanted.rounds == 0
        || wanted.devices.iter().all(|device| [Subject::Instructions, Subject::Systemd, Subject::Cuts].contains(device))
            && !wanted.devices.is_empty()
    {
        return Ok(());
    }
    eprintln!("booting a host and its gateway …");
    let mut bench = Bench::new(Host::with(setup()), wanted, report);
    for round in 1..=wanted.rounds {
        eprintln!("round {round} of {} …", wanted.rounds);
        bench.round();
    }
    bench.host.shut_down();
    Ok(())
}

/// What an application waits for when the daemon is killed under it, [`KILLS`] times.
fn restarted_by_systemd(seconds: u64) -> Load {
    let mut gateway = Gateway::here();
    let token = gateway.token();
    let mut machine = Machine::debian("host", Kernel::Newest)
        .processors(2)
        .modules(&["ublk_drv"])
        .programs(&["farside-vm-bench"])
        .disk(DiskSpec::blank("data", VOLUME_MIB))
        .on_this_machine();
    let mut host = machine.boot();
    host.booted();
    packages::install(&mut host, PACKAGES);
    host.run(&format!("farside pair '{token}'"));
    let data = host.disk("data");
    host.run(&format!("farside volume add data --backing {data}"));
    packages::wait_quiet(&mut host);
    let (log, seconds) = ("/run/killed.log", seconds.max(10) * 4);
    let command = format!("exec farside-vm-bench load $(readlink -f {DEVICE}) write-4096-1 {seconds}");
    let application = host.start_command(&command, log);
    for _ in 0..KILLS {
        let written = host.run("cat /sys/block/ublkb0/stat");
        wait_for("the application to write", || (host.run("cat /sys/block/ublkb0/stat") != written).then_some(()));
        let killed = host.run("pid=$(systemctl show --property MainPID --value farsided); kill -9 $pid; echo $pid");
        std::thread::sleep(UNASKED);
        wait_for("systemd to start it", || {
            let now = host.run("systemctl show --property MainPID --value farsided");
            (now != killed && now.trim() != "0" && packages::status(&mut host).is_some()).then_some(())
        });
    }
    assert_eq!(host.attempt(&format!("test -d /proc/{application}")).code, 0, "it was killed when the application was over");
    host.wait_until(&format!("test ! -d /proc/{application}"));
    let said = host.run(&format!("cat {log}"));
    packages::wait_quiet(&mut host);
    host.run("farside volume remove data --yes");
    host.power_off();
    gateway.shut_down();
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

impl<'a> Bench<'a> {
    fn new(mut host: Host, wanted: &'a Wanted, report: &'a mut Report) -> Self {
        let data = host.guest.run("cat /run/backing").trim().to_owned();
        // Tests want regions to be clean again after a second; who runs Farside has the default.
        host.guest.run("sed -i /cool_after_seconds/d /state/farsided.toml");
        host.kill_daemon();
        host.start_daemon();
        Self { host, data, wanted, report }
    }

    /// What each request costs in instructions.
    fn count(&mut self) {
        let data = self.data.clone();
        if self.wanted.has(Subject::Disk) {
            self.count_all(DISK, &data, None);
        }
        self.others(Self::count_all);
        if self.wanted.has(Subject::Bare) {
            for (server, options) in BARES {
                let bare = Bare::serve(&mut self.host.guest, &data, options);
                self.report.data_path(server, bare.way.clone());
                let threads = bare.threads(&mut self.host.guest);
                self.count_all(server, &bare.path.clone(), Some(&threads));
                bare.stop(&mut self.host.guest);
            }
        }
        if self.wanted.has(Subject::Farside) {
            self.add("ublk");
            self.farside("volume pause data");
            let threads = self.host.queue_threads();
            self.count_all(PAUSED, DEVICE, Some(&threads));
            self.farside("volume resume data");
            self.host.wait_for_group("everything to be published", is_quiet);
            self.count_all(REPLICATING, DEVICE, Some(&threads));
            let path = format!("{}, {} requests copied in spite of it", self.host.data_path(), self.host.copied());
            self.report.data_path("farside", path);
            self.farside("volume remove data --yes");
        }
        if self.wanted.has(Subject::NbdDevice) {
            self.add("nbd-device");
            let threads = self.host.queue_threads();
            self.count_all(NBD, DEVICE, Some(&threads));
            self.farside("volume remove data --yes");
        }
    }

    fn count_all(&mut self, server: &'static str, device: &str, threads: Option<&Threads>) {
        for workload in WORKLOADS {
            let arguments = format!("{workload} 1");
            let run = |guest: &mut Guest| load(guest, device, &arguments);
            run(&mut self.host.guest); // whatever happens once
            let guest = &mut self.host.guest;
            let ((load, mut ran), took) = match threads {
                Some(threads) => {
                    let (given, counts) = threads.count(guest, |guest| ran(guest, run));
                    (given, (Some(counts.run_ns), counts.all_ns))
                }
                None => {
                    let before = all_ran(guest);
                    let given = ran(guest, run);
                    (given, (None, all_ran(guest) - before))
                }
            };
            ran.insert("the application".to_owned(), load.run_ns);
            // By itself: to count copies takes instructions, too.
            let copied = threads.map(|threads| {
                let (under, bytes) = copied(guest, threads, run);
                bytes as f64 / (under.operations * bytes_of(workload)) as f64
            });
            self.report.counted(Instructions::new(workload, server, load, requests_of(workload), took, copied, &ran));
        }
    }

    fn round(&mut self) {
        let data = self.data.clone();
        if self.wanted.has(Subject::Disk) {
            self.measure_all(DISK, &data, None);
        }
        self.others(Self::measure_all);
        if self.wanted.has(Subject::Bare) {
            for (server, options) in BARES {
                let bare = Bare::serve(&mut self.host.guest, &data, options);
                let threads = bare.threads(&mut self.host.guest);
                self.measure_all(server, &bare.path.clone(), Some(&threads));
                bare.stop(&mut self.host.guest);
            }
        }
        if self.wanted.has(Subject::Farside) {
            self.farside_round();
        }
        if self.wanted.has(Subject::NbdDevice) {
            self.add("nbd-device");
            let threads = self.host.queue_threads();
            self.measure_all(NBD, DEVICE, Some(&threads));
            self.farside("volume remove data --yes");
        }
    }

    fn farside_round(&mut self) {
        self.add("ublk");
        self.farside("volume pause data");
        let threads = self.host.queue_threads();
        self.measure_all(PAUSED, DEVICE, Some(&threads));
        self.farside("volume resume data");
        self.host.wait_for_group("everything to be published", is_quiet);
        self.measure_all(REPLICATING, DEVICE, Some(&threads));
        self.die();
        self.host.wait_for_group("everything to be published", is_quiet);
        self.farside("group set default --epoch 500ms");
        self.farside("volume remove data --yes");
    }

    fn around_cuts(&mut self) -> Result<()> {
        self.add("ublk");
        let threads = self.host.queue_threads();
        stand_aside(self.host.gateway.guest().emulator())?;
        for _ in 0..CUT_TURNS {
            for (server, epoch) in [(NO_CUTS, "1h"), (CUTS, "200ms")] {
                self.farside("group set default --epoch 200ms");
                self.host.wait_for_group("everything to be published", is_quiet);
                self.farside(&format!("group set default --epoch {epoch}"));
                self.measure(server, "write-4096-1", DEVICE, Some(PACE), Some(&threads));
            }
        }
        self.farside("group set default --epoch 200ms");
        self.host.wait_for_group("everything to be published", is_quiet);
        self.farside("group set default --epoch 500ms");
        self.farside("volume remove data --yes");
        Ok(())
    }

    /// What others have for the same job, over the same disk; their notes are on a disk of their own, as Farside's are.
    fn others(&mut self, mut measure: impl FnMut(&mut Self, &'static str, &str, Option<&Threads>)) {
        let notes = self.host.guest.disk(drbd::NOTES);
        let data = self.data.clone();
        if self.wanted.has(Subject::DmEra) {
            let size = self.host.guest.run(&format!("blockdev --getsz {data}"));
            let table = format!("0 {} era {notes} {data} 8192", size.trim());
            let clear = format!("dd if=/dev/zero of={notes} bs=64k count=1 oflag=direct 2>/dev/null");
            self.host.guest.run(&format!("{clear} && dmsetup create era --table '{table}'"));
            measure(self, ERA, "/dev/mapper/era", None);
            self.host.guest.run("dmsetup remove era");
        }
        if self.wanted.has(Subject::Drbd) {
            drbd::up(&mut self.host);
            for (server, protocol) in [(DRBD_C, 'C'), (DRBD_A, 'A')] {
                drbd::connect(&mut self.host, protocol);
                measure(self, server, drbd::DEVICE, None);
                drbd::disconnect(&mut self.host);
            }
            // Now it knows its peer's limits: before that it asks for 4 KiB at most.
            measure(self, DRBD_ALONE, drbd::DEVICE, None);
            drbd::down(&mut self.host);
        }
    }

    /// Its history goes on, if it had one.
    fn add(&mut self, tap: &str) {
        let data = self.data.clone();
        self.farside(&format!("volume add data --backing {data} --tap {tap}"));
        let group = self.host.wait_for_group("a first sync or a fork", |group| {
            let state = &group["volumes"][0]["state"]["state"];
            is_quiet(group) || state == "forked"
        });
        if group["volumes"][0]["state"]["state"] == "forked" {
            self.farside("volume resync data --accept forked");
            self.host.wait_for_group("everything to be published", is_quiet);
        }
    }

    fn farside(&mut self, command: &str) {
        self.host.guest.run(&format!("{CLI} {command}"));
    }

    fn measure_all(&mut self, server: &'static str, device: &str, threads: Option<&Threads>) {
        for workload in WORKLOADS {
            self.measure(server, workload, device, None, threads);
        }
    }

    fn measure(
        &mut self,
        server: &'static str,
        workload: &'static str,
        device: &str,
        rate: Option<u64>,
        threads: Option<&Threads>,
    ) {
        let pace = rate.map_or_else(String::new, |rate| format!(" {rate}"));
        let seconds = if rate.is_some() { CUT_SECONDS * self.wanted.seconds } else { self.wanted.seconds };
        let arguments = format!("{workload} {seconds}{pace}");
        let emulators = [
            ("the emulated host", self.host.guest.emulator()),
            ("the emulated gateway", self.host.gateway.guest().emulator()),
            ("disks and network", std::process::id()),
        ];
        let before = emulators.map(|(_, process)| usage(process).0);
        let run = |guest: &mut Guest| ran(guest, |guest| load(guest, device, &arguments));
        let ((load, mut ran), counts) = match threads {
            Some(threads) => {
                let (given, counts) = threads.count(&mut self.host.guest, run);
                (given, Some(counts))
            }
            None => (run(&mut self.host.guest), None),
        };
        ran.insert("the application".to_owned(), load.run_ns);
        for ((name, process), before) in emulators.into_iter().zip(before) {
            ran.insert(format!("{OUTSIDE}{name}"), (usage(process).0 - before).as_nanos() as u64);
        }
        let name = if rate.is_some() { format!("{workload}, {PACE}/s") } else { workload.to_owned() };
        self.report.in_vm(VmRow::new(name, server, load, requests_of(workload), counts, &ran));
    }

    /// What an application waits for when the daemon is killed in the middle and started again at once.
    fn die(&mut self) {
        let (log, seconds) = ("/run/killed.log", self.wanted.seconds.max(5) * 3);
        let command = format!("exec farside-vm-bench load $(readlink -f {DEVICE}) write-4096-1 {seconds}");
        self.host.guest.run(&format!("rm -f {log}"));
        let application = self.host.guest.start_command(&command, log);
        let before = self.host.guest.run("cat /proc/diskstats");
        wait_for("the application to write", || (self.host.guest.run("cat /proc/diskstats") != before).then_some(()));
        self.host.kill_daemon();
        self.host.start_daemon();
        self.host.guest.wait_until(&format!("test ! -d /proc/{application}"));
        let said = self.host.guest.run(&format!("cat {log}"));
        let load: Load = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        self.report.in_vm(VmRow::new("write-4096-1".to_owned(), KILLED, load, 1, None, &BTreeMap::new()));
    }
}
