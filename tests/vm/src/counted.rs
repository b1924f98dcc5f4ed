//! What threads of a guest cost the kernel: counted, since emulation distorts time.
//!
//! Invariant: system calls are counted by the kernel's own tracing (`raw_syscalls:sys_enter`), of these threads alone, between two
//! moments; nothing of ours counts itself. Copies are counted where the kernel makes them: a server that is never given the pages
//! of a request (zero copy) cannot copy them itself.

use std::collections::BTreeMap;

use crate::Guest;

const TRIGGER: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/trigger";
const HISTOGRAM: &str = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/hist";

/// Counts of threads, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// System calls.
    pub system_calls: u64,
    /// Times at which one went to sleep.
    pub sleeps: u64,
    /// Times at which one was taken from a processor.
    pub preemptions: u64,
    /// For how long they ran, in nanoseconds of the guest, with the interrupts that met them. On a machine of
    /// [`crate::Machine::counting_instructions`] they are a number of instructions.
    pub run_ns: u64,
    /// For how long anything ran on any processor.
    pub all_ns: u64,
}

/// Threads of a guest.
#[derive(Clone, Debug)]
pub struct Threads(Vec<u32>);

impl Threads {
    /// Those of a process whose names begin so.
    ///
    /// # Panics
    /// When there is none.
    pub fn of(guest: &mut Guest, process: u32, name: &str) -> Self {
        let found = guest.run(&format!("grep -l '^{name}' /proc/{process}/task/*/comm | cut -d/ -f5"));
        let threads: Vec<u32> = found.split_whitespace().map(|id| id.parse().expect("a number")).collect();
        assert!(!threads.is_empty(), "process {process} has no thread {name}");
        Self(threads)
    }

    /// How many.
    pub fn number(&self) -> usize {
        self.0.len()
    }

    /// What they do while something runs.
    ///
    /// # Panics
    /// When the kernel does not count.
    pub fn count<T>(&self, guest: &mut Guest, run: impl FnOnce(&mut Guest) -> T) -> (T, Counts) {
        let any: Vec<String> = self.0.iter().map(|id| format!("common_pid == {id}")).collect();
        let trigger = format!("hist:keys=common_pid if {}", any.join(" || "));
        mount_tracing(guest);
        let (sleeps, preemptions) = self.switches(guest);
        let (run_ns, all_ns) = self.ran(guest);
        guest.run(&format!("echo '{trigger}' > {TRIGGER}"));
        let given = run(guest);
        let ran = self.ran(guest);
        let histogram = guest.run(&format!("cat {HISTOGRAM}"));
        guest.run(&format!("echo '!{trigger}' > {TRIGGER}"));
        let after = self.switches(guest);
        let total = histogram.lines().find_map(|line| line.trim().strip_prefix("Hits:"));
        let system_calls = total.and_then(|hits| hits.trim().parse().ok()).unwrap_or_else(|| panic!("no hits: {histogram}"));
        let (sleeps, preemptions) = (after.0 - sleeps, after.1 - preemptions);
        (given, Counts { system_calls, sleeps, preemptions, run_ns: ran.0 - run_ns, all_ns: ran.1 - all_ns })
    }

    /// The threads, and all that there are.
    fn ran(&self, guest: &mut Guest) -> (u64, u64) {
        let threads = self.cat(guest, "schedstat");
        let threads = threads.lines().map(|line| number(line.split_whitespace().next()));
        (threads.sum(), all_ran(guest))
    }

    fn switches(&self, guest: &mut Guest) -> (u64, u64) {
        let status = self.cat(guest, "status");
        let of = |key: &str| {
            let lines = status.lines().filter_map(|line| line.strip_prefix(key));
            lines.map(|line| line.trim_start_matches(':').trim().parse::<u64>().expect("a number")).sum()
        };
        (of("voluntary_ctxt_switches"), of("nonvoluntary_ctxt_switches"))
    }

    fn cat(&self, guest: &mut Guest, file: &str) -> String {
        let files: Vec<String> = self.0.iter().map(|id| format!("/proc/{id}/task/{id}/{file}")).collect();
        guest.run(&format!("cat {}", files.join(" ")))
    }
}

/// Where the kernel copies between those who ask a block device and those who serve it: ublk's driver where there is no zero copy,
/// and the socket of an NBD client. The functions' names may have endings of the compiler's. What they return or are given is the
/// number of bytes. (That which all of them call, `_copy_from_iter` and its like, cannot be traced in Debian's kernels.)
const COPIES: [(&str, &str, &str); 3] = [
    ("r", "ublk_copy_user_pages", "$retval:s64"),
    ("r", "unix_stream_recvmsg", "$retval:s32"),
    ("p", "unix_stream_sendmsg", "%dx:s64"),
];

/// Bytes that the kernel copied between who asks and these threads while something ran.
///
/// # Panics
/// When the kernel does not count.
pub fn copied<T>(guest: &mut Guest, threads: &Threads, run: impl FnOnce(&mut Guest) -> T) -> (T, u64) {
    const TRACING: &str = "/sys/kernel/tracing";
    const TRIGGER: &str = "hist:keys=common_pid:vals=bytes:size=4096 if bytes > 0";
    mount_tracing(guest);
    for (kind, function, bytes) in COPIES {
        let names = format!(r"grep -oE '^{function}(\.[a-z]+\.[0-9]+)*( |$)' {TRACING}/available_filter_functions");
        let name = guest.run(&names);
        guest.run(&format!("echo '{kind}:farside/{function} {} bytes={bytes}' >> {TRACING}/kprobe_events", name.trim()));
        guest.run(&format!("echo '{TRIGGER}' > {TRACING}/events/farside/{function}/trigger"));
    }
    let given = run(guest);
    let mut copied = 0;
    for (_, function, _) in COPIES {
        let event = format!("{TRACING}/events/farside/{function}");
        let histogram = guest.run(&format!("cat {event}/hist"));
        assert!(histogram.contains("Dropped: 0"), "too many threads: {histogram}");
        guest.run(&format!("echo '!{TRIGGER}' > {event}/trigger"));
        guest.run(&format!("echo '-:farside/{function}' >> {TRACING}/kprobe_events"));
        // { common_pid:        123 } hitcount:          4  bytes:      16384
        for line in histogram.lines().filter(|line| line.starts_with('{')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let of = |key| words.iter().position(|word| *word == key).map(|at| number(words.get(at + 1).copied()));
            let (thread, bytes) = of("common_pid:").zip(of("bytes:")).unwrap_or_else(|| panic!("not a count: {line}"));
            copied += if threads.0.iter().any(|id| u64::from(*id) == thread) { bytes } else { 0 };
        }
    }
    (given, copied)
}

fn mount_tracing(guest: &mut Guest) {
    guest.run("test -d /sys/kernel/tracing/events || mount -t tracefs none /sys/kernel/tracing");
}

/// For how long anything ran on any processor, in nanoseconds of the guest.
///
/// # Panics
/// When the guest does not say.
pub fn all_ran(guest: &mut Guest) -> u64 {
    let all = guest.run("cat /proc/schedstat");
    all.lines().filter(|line| line.starts_with("cpu")).map(|line| number(line.split_whitespace().nth(7))).sum()
}

fn number(word: Option<&str>) -> u64 {
    word.and_then(|word| word.parse().ok()).expect("a number")
}

/// For how long threads of a guest ran, in nanoseconds, by what they are: `farsided send-data`. What ended meanwhile is not there.
///
/// # Panics
/// When the guest does not say.
pub fn ran<T>(guest: &mut Guest, run: impl FnOnce(&mut Guest) -> T) -> (T, BTreeMap<String, u64>) {
    let look = |guest: &mut Guest| {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for line in guest.run("farside-vm-bench ran").lines() {
            let [ran, process, thread] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("not a thread: {line}") };
            // Numbers and what follows them tell threads of one kind from each other.
            let kind = |name: &str| name.split(|c: char| c.is_ascii_digit() || ":/".contains(c)).next().unwrap_or("").to_owned();
            let (process, thread) = (kind(process), kind(thread));
            let name = if process == thread { process } else { format!("{process} {thread}") };
            *all.entry(name.trim_end_matches(['-', ' ']).to_owned()).or_default() += ran.parse::<u64>().unwrap_or(0);
        }
        all
    };
    let before = look(guest);
    let given = run(guest);
    let mut after = look(guest);
    after.iter_mut().for_each(|(name, ran)| *ran = ran.saturating_sub(before.get(name).copied().unwrap_or(0)));
    after.retain(|_, ran| *ran > 0);
    (given, after)
}

/// A ublk device over a disk, with nothing in between: what other servers of such devices are compared with. It ends when it is
/// stopped.
#[derive(Debug)]
pub struct Bare {
    process: u32,
    /// Its node.
    pub path: String,
    /// How its data comes and goes.
    pub way: String,
}

impl Bare {
    const LOG: &str = "/run/bare.log";
    const STOP: &str = "/run/bare.stop";

    /// Serves it. `options`: of `farside-vm-bench serve`.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn serve(guest: &mut Guest, backing: &str, options: &str) -> Self {
        guest.run(&format!("test -p {0} || mkfifo {0}; rm -f {1}", Self::STOP, Self::LOG));
        let command = format!("exec farside-vm-bench serve {backing} {} {options}", Self::STOP);
        let process = guest.start_command(&command, Self::LOG);
        let said = guest.wait_until(&format!("grep . {}", Self::LOG));
        let (path, way) = said.trim().split_once(' ').unwrap_or_else(|| panic!("it said {said}"));
        Self { process, path: path.to_owned(), way: way.to_owned() }
    }

    /// Its threads, one for each queue.
    ///
    /// # Panics
    /// When it is gone.
    pub fn threads(&self, guest: &mut Guest) -> Threads {
        Threads::of(guest, self.process, "serve")
    }

    /// Takes it away. Gives the number of requests, of errors, and of requests that were copied in spite of zero copy.
    ///
    /// # Panics
    /// When it does not go.
    pub fn stop(self, guest: &mut Guest) -> [u64; 3] {
        guest.run(&format!("echo > {}", Self::STOP));
        let said = guest.wait_until(&format!("grep requests {}", Self::LOG));
        guest.wait_for_end(self.process);
        let words: Vec<&str> = said.split_whitespace().collect();
        [1, 3, 5].map(|at| words[at].parse().expect("a number"))
    }
}

/// From now on the guest's processor always has something to do, which everything else interrupts at once. † Of a guest that counts
/// instructions the clock goes with the host's while it is idle, and what wakes up then is late by as much as the host is.
///
/// # Panics
/// When its kernel has no groups for that.
pub fn never_idle(guest: &mut Guest) {
    const GROUP: &str = "/run/idle/spin";
    guest.run(&format!(
        "mkdir /run/idle && mount -t cgroup2 none /run/idle && echo +cpu >/run/idle/cgroup.subtree_control && mkdir {GROUP}"
    ));
    guest.run(&format!("echo 1 >{GROUP}/cpu.idle"));
    guest.start_command(&format!("echo $$ >{GROUP}/cgroup.procs && exec farside-vm-bench spin"), "/run/spin.log");
    guest.wait_until(&format!("grep . {GROUP}/cgroup.procs"));
}

/// What a load of `farside-vm-bench` met.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
pub struct Load {
    /// Done.
    pub operations: u64,
    /// In a second.
    pub iops: f64,
    /// Of all.
    pub mean_us: f64,
    /// Half were faster.
    pub p50_us: u64,
    /// 99 of 100 were faster.
    pub p99_us: u64,
    /// 999 of 1000 were faster.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
    /// Of all latencies: where a step begins, in microseconds, and how many lie in it. Eight steps for each power of two.
    pub histogram: Vec<[u64; 2]>,
    /// For how long it ran itself, in nanoseconds.
    pub run_ns: u64,
}

/// Puts a load on a device: `farside-vm-bench load`.
///
/// # Panics
/// When it meets an error.
pub fn load(guest: &mut Guest, device: &str, arguments: &str) -> Load {
    let said = guest.run(&format!("farside-vm-bench load $(readlink -f {device}) {arguments}"));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}
