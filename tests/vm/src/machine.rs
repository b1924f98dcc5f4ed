//! A machine that can be booted, lose its power and be booted again on the same disks; and the guest that runs on it.
//!
//! Invariants: every qemu ends with the guest that owns it, also when the test process is killed; a power cut takes the
//! machine and all its disks at one moment; a guest whose kernel said something that the test did not announce fails the
//! test when it ends, however it ends.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use farside_tests::forgetful::{self, Flush, Platter};
use farside_tests::verify::Rng;
use farside_tests::{PATIENCE, bin_dir, tail, tool, wait_for};
use serde_json::Value;
use tempfile::TempDir;

use crate::cache;
use crate::image::{self, DEBIAN_IMAGE, DEBIAN_TREE, Userland};
use crate::kernel::Kernel;
use crate::klog::Record;
use crate::network::{self, Network, Wiring};
use crate::protocol::{AGENT_PORT, LOG_PORT, Reply, Request, receive, send};
use crate::toolbox::{self, Toolbox};

/// Modules that every guest needs: for the bus (built into some kernels, not into 6.1), the agent, disks, the network.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_blk", "virtio_net"];
/// How long a guest whose test has failed may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// Set, it has each guest say how long it took for what it was asked.
const TRACE: &str = "FARSIDE_VM_TRACE";
/// The ends of the logs, and where in the kernel each thread of ours is.
const ASK_LAST_WORDS: &str = r#"for log in /run/*.log; do echo "== $log"; tail -n 40 "$log"; done
for task in /proc/[0-9]*/task/*; do
    case "$(cat ${task%/task/*}/comm) $(grep State $task/status)" in
    *farside* | *"D (disk sleep)") echo "== $task $(cat $task/comm): $(grep State $task/status)"; cat $task/stack;;
    esac
done 2>&1"#;
/// What an instruction may take of the time of a guest of [`Machine::counting_instructions`], in nanoseconds, for its clock to go about as
/// fast as this machine's: what it takes the emulator.
pub const INSTRUCTION_NS: u64 = 16;
const SHELL_FAILURE: i32 = 127;

/// What a guest's kernel believes about a disk's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// There is a volatile one, and flushes empty it. What was not flushed is lost at a power cut.
    Volatile,
    /// There is a volatile one, and flushes do nothing: a disk that lies.
    Lying,
}

/// A disk of a machine.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Its serial number, by which tests name it.
    pub serial: &'static str,
    /// What is on it; its length is the disk's size.
    pub content: Vec<u8>,
    /// 512 or 4096.
    pub logical_block: u32,
    /// Its cache.
    pub cache: Cache,
}

impl DiskSpec {
    /// An empty disk of so many MiB with 512-byte blocks and a volatile cache.
    pub fn blank(serial: &'static str, mib: usize) -> Self {
        Self { serial, content: vec![0; mib << 20], logical_block: 512, cache: Cache::Volatile }
    }
}

#[derive(Debug)]
struct Disk {
    serial: &'static str,
    socket: PathBuf,
    logical_block: u32,
    platter: Platter,
}

/// A machine, switched on or off.
#[derive(Debug)]
pub struct Machine {
    name: &'static str,
    kernel: Kernel,
    memory_mib: u32,
    processors: u32,
    instruction_ns: Option<u64>,
    modules: Vec<&'static str>,
    ours: Vec<PathBuf>,
    theirs: Vec<&'static str>,
    host: Option<(u8, Wiring)>,
    /// Of Debian: what this machine wrote to its root.
    root: Option<PathBuf>,
    toolbox: Option<Arc<Toolbox>>,
    disks: Arc<Vec<Disk>>,
    initramfs: Option<PathBuf>,
    boots: u32,
    dir: TempDir,
}

impl Machine {
    /// A machine without disks, with one processor and 512 MiB, switched off.
    ///
    /// # Panics
    /// When there is no room for its files.
    pub fn new(name: &'static str, kernel: Kernel) -> Self {
        let dir = tempfile::Builder::new().prefix("farside-vm-").tempdir().expect("a temporary directory");
        Self {
            name,
            kernel,
            memory_mib: 512,
            processors: 1,
            instruction_ns: None,
            modules: MODULES.to_vec(),
            ours: vec![bin_dir().join("farside-vm-agent")],
            theirs: Vec::new(),
            host: None,
            root: None,
            toolbox: None,
            disks: Arc::default(),
            initramfs: None,
            boots: 0,
            dir,
        }
    }

    /// A machine that boots Debian, with systemd, udev and LVM, from a root disk of its own. What it writes there is kept from
    /// boot to boot; a power cut loses nothing of it (only [`DiskSpec`]s forget), so put what matters on another disk.
    ///
    /// # Panics
    /// When the root file system was not fetched, or there is no room.
    pub fn debian(name: &'static str, kernel: Kernel) -> Self {
        let mut machine = Self::new(name, kernel).memory_mib(1024).modules(&["autofs4", "binfmt_misc"]); // systemd asks for them
        let (base, overlay) = (cache::tree(DEBIAN_TREE).join(DEBIAN_IMAGE), machine.dir.path().join("root.qcow2"));
        let mut command = tool("qemu-img");
        command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(&overlay);
        farside_tests::run(&mut command);
        machine.root = Some(overlay);
        machine
    }

    /// With so much memory.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// With so many processors: for what happens on several at once. Emulated ones are threads of this machine, and where it has fewer that
    /// are idle, a guest may lose a timer: tests of such machines run alone (`xtask/src/machines.rs`).
    pub fn processors(mut self, number: u32) -> Self {
        self.processors = number;
        self
    }

    /// With one processor, each instruction of which takes so many nanoseconds of the guest's time, whatever the host does meanwhile:
    /// a time for which something ran there is a number of instructions. Idle, its clock goes with the host's
    /// ([`crate::counted::never_idle`]).
    ///
    /// # Panics
    /// When that is no power of two.
    pub fn counting_instructions(mut self, each_ns: u64) -> Self {
        assert!(each_ns.is_power_of_two(), "{each_ns} ns is no power of two");
        self.instruction_ns = Some(each_ns);
        self
    }

    /// With these modules, and what they need, loaded at boot.
    pub fn modules(mut self, names: &[&'static str]) -> Self {
        self.modules.extend(names);
        self
    }

    /// With these of our programs in its search path.
    ///
    /// # Panics
    /// When one has not been built.
    pub fn programs(mut self, names: &[&str]) -> Self {
        for name in names {
            let path = bin_dir().join(name);
            assert!(
                path.exists(),
                "{} is not built; run the tests through `cargo run --release -p xtask -- test`",
                path.display()
            );
            self.ours.push(path);
        }
        self
    }

    /// With these programs of Debian in its search path. Where busybox has one of that name, its shell prefers busybox's:
    /// then call `/bin/NAME`.
    pub fn debian_programs(mut self, names: &[&'static str]) -> Self {
        self.theirs.extend(names);
        self
    }

    /// With one more disk.
    ///
    /// # Panics
    /// When it already ran.
    pub fn disk(mut self, spec: DiskSpec) -> Self {
        let socket = self.dir.path().join(format!("{}.disk", spec.serial));
        let flush = match spec.cache {
            Cache::Volatile => Flush::Honest,
            Cache::Lying => Flush::Lying,
        };
        let platter = Platter::serve(&socket, spec.content, spec.logical_block, flush);
        let disk = Disk { serial: spec.serial, socket, logical_block: spec.logical_block, platter };
        Arc::get_mut(&mut self.disks).expect("no guest has it yet").push(disk);
        self
    }

    /// With the disk of a toolbox.
    pub fn toolbox(mut self, toolbox: &Arc<Toolbox>) -> Self {
        self.toolbox = Some(toolbox.clone());
        self
    }

    /// With a card on a network.
    pub fn on(mut self, network: &Network) -> Self {
        self.host = Some((network.admit(), Wiring::Hub(network.socket())));
        self
    }

    /// With a card that reaches this machine's loopback, as [`crate::gateway`] has it.
    pub fn on_this_machine(mut self) -> Self {
        self.host = Some((1, Wiring::Here));
        self
    }

    /// Its address.
    ///
    /// # Panics
    /// When it is on no network.
    pub fn address(&self) -> String {
        network::address(self.host.as_ref().expect("it is on a network").0)
    }

    /// What a reader of one of its disks would see.
    ///
    /// # Panics
    /// When it has no disk of that name.
    pub fn disk_content(&self, serial: &str) -> Vec<u8> {
        self.platter(serial).content()
    }

    /// Lays content on one of its disks, which nobody uses.
    ///
    /// # Panics
    /// When it has no disk of that name and length.
    pub fn lay_on_disk(&self, serial: &str, content: &[u8]) {
        self.platter(serial).lay(content);
    }

    /// What is left of one of its disks if the power goes and nothing survives that was not flushed.
    ///
    /// # Panics
    /// When it has no disk of that name.
    pub fn durable_content(&self, serial: &str) -> Vec<u8> {
        self.platter(serial).durable()
    }

    /// From now on one of its disks answers no flush, and nothing that comes after one, until [`Machine::let_go`] or a power cut.
    ///
    /// # Panics
    /// When it has no disk of that name.
    pub fn hold_flushes(&self, serial: &str) {
        self.platter(serial).hold_flushes();
    }

    /// Waits until a flush is held.
    ///
    /// # Panics
    /// When none comes.
    pub fn wait_until_held(&self, serial: &str) {
        let platter = self.platter(serial);
        wait_for("a flush to be held", || platter.is_holding().then_some(()));
    }

    /// Ends [`Machine::hold_flushes`].
    ///
    /// # Panics
    /// When it has no disk of that name.
    pub fn let_go(&self, serial: &str) {
        self.platter(serial).let_go();
    }

    fn platter(&self, serial: &str) -> &Platter {
        &self.disks.iter().find(|disk| disk.serial == serial).expect("it has that disk").platter
    }

    /// Switches it on and waits until the agent speaks.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn boot(&mut self) -> Guest {
        if self.initramfs.is_none() {
            let path = self.dir.path().join("initramfs");
            let userland = if self.root.is_some() { Userland::Debian } else { Userland::InMemory };
            std::fs::write(&path, image::initramfs(userland, self.kernel, &self.modules, &self.ours, &self.theirs))
                .expect("room");
            self.initramfs = Some(path);
        }
        self.boots += 1;
        for disk in self.disks.iter() {
            disk.platter.switch_on();
        }
        Guest::start(self)
    }

    fn command_line(&self, console: &Path, agent: &Path, log: &Path) -> Vec<String> {
        let image = self.kernel.unpacked();
        assert!(
            image.exists(),
            "{} is not there; `cargo run --release -p xtask -- test --only kernels` makes it",
            image.display()
        );
        let initramfs = self.initramfs.as_ref().expect("made before the first boot");
        let address = if self.host.is_some() { self.address() } else { String::new() };
        // Emulation is slow and this machine may be busy: the kernel's watchdogs wait accordingly, and still bite. Its check
        // whether timer interrupts arrive ends in a panic when the emulator gets no time at that moment. What guards a kernel against
        // its users, and a fifth level of page tables, is emulated dearly and proves nothing here. Nor does a keyboard, which does not
        // always answer a busy machine in time. A processor that says that it copies strings of bytes fast is asked to, and the emulator
        // copies them byte by byte.
        // † With several processors under a busy machine, now and then one of them hears no more of its timer: its next interrupt was
        // the last, for a timer is set for one interrupt, by whom the one before it wakes ("Possible timer handling issue on cpu"). Ticks
        // that come by themselves end that: one that is lost is made good by the next.
        let ticks = if self.processors > 1 { " nohz=off highres=off" } else { "" };
        let kernel_arguments = format!(
            "console=ttyS0 loglevel=4 panic=-1 oops=panic no_timer_check printk.devkmsg=on log_buf_len=1M watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=60 \
             sysctl.kernel.hung_task_timeout_secs=240 net.ifnames=0 8250.nr_uarts=1 mitigations=off init_on_alloc=0 farside_host={} farside_address={address}{ticks}",
            self.name
        );
        let processors = match self.instruction_ns {
            Some(ns) => format!("-accel tcg,thread=single -icount shift={} -smp 1", ns.ilog2()),
            None => format!("-accel tcg,thread=multi -smp {}", self.processors),
        };
        let fixed = [
            "--pdeathsig KILL -- qemu-system-x86_64 -M q35,i8042=off,sata=off,smbus=off -cpu max,-la57,-smap,-smep,-umip,-pku,-erms,-fsrm -nodefaults -no-user-config",
            &processors,
            "-no-reboot -display none -device virtio-serial-pci",
        ];
        let mut line: Vec<String> = fixed.iter().flat_map(|part| part.split(' ')).map(str::to_owned).collect();
        let mut option = |name: &str, value: String| line.extend([name.to_owned(), value]);
        option("-m", format!("{}M", self.memory_mib));
        option("-kernel", image.display().to_string());
        option("-initrd", initramfs.display().to_string());
        option("-append", kernel_arguments);
        option("-serial", format!("file:{}", console.display()));
        for (id, socket, port) in [("agent", agent, AGENT_PORT), ("log", log, LOG_PORT)] {
            option("-chardev", format!("socket,id={id},path={},server=off", socket.display()));
            option("-device", format!("virtserialport,chardev={id},name={port}"));
        }
        if let Some(root) = &self.root {
            let file = format!("file.driver=file,file.filename={}", root.display());
            option("-blockdev", format!("driver=qcow2,node-name=root,cache.no-flush=on,{file}"));
            option("-device", "virtio-blk-pci,drive=root,serial=root".into());
        }
        if let Some(toolbox) = &self.toolbox {
            option("-blockdev", format!("driver=file,node-name=toolbox,read-only=on,filename={}", toolbox.image().display()));
            option("-device", format!("virtio-blk-pci,drive=toolbox,serial={}", toolbox::SERIAL));
        }
        for (at, disk) in self.disks.iter().enumerate() {
            let node = format!("disk{at}");
            option(
                "-blockdev",
                format!("driver=nbd,node-name={node},discard=unmap,server.type=unix,server.path={}", disk.socket.display()),
            );
            option(
                "-device",
                format!(
                    "virtio-blk-pci,drive={node},serial={},write-cache=on,logical_block_size={b},physical_block_size={b}",
                    disk.serial,
                    b = disk.logical_block
                ),
            );
        }
        if let Some((host, wiring)) = &self.host {
            line.extend(network::card(*host, wiring));
        }
        line
    }
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// 0 is success; 128 and the signal's number if it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A machine that runs.
#[derive(Debug)]
pub struct Guest {
    name: &'static str,
    qemu: Child,
    agent: UnixStream,
    log: Arc<Log>,
    announced: Vec<String>,
    marks: u32,
    /// Its kernel's log was judged, or the test has failed already.
    judged: bool,
    disks: Arc<Vec<Disk>>,
    console: PathBuf,
}

/// The kernel's log as far as it has come.
#[derive(Debug, Default)]
struct Log {
    received: Mutex<Received>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Received {
    records: Vec<Record>,
    /// Nothing more comes.
    ended: bool,
}

impl Guest {
    fn start(machine: &Machine) -> Self {
        let file = |name: &str| machine.dir.path().join(format!("{name}{}", machine.boots));
        let (console, agent_path, log_path) = (file("console"), file("agent"), file("log"));
        let agent = UnixListener::bind(&agent_path).expect("a socket");
        let log = UnixListener::bind(&log_path).expect("a socket");
        // setpriv ends qemu with the thread that starts it, also when that has no time to clean up.
        let mut command = tool("setpriv");
        command.args(machine.command_line(&console, &agent_path, &log_path)).stdin(Stdio::null());
        let errors = File::create(file("qemu")).expect("room");
        let mut qemu = command.stdout(errors.try_clone().expect("a file")).stderr(errors).spawn().expect("setpriv starts");
        let connected = accept(&agent, &mut qemu).and_then(|agent| Some((agent, accept(&log, &mut qemu)?)));
        let Some((agent, log_stream)) = connected else {
            let _ = qemu.kill();
            let _ = qemu.wait();
            panic!("qemu for {} does not run:\n{}", machine.name, tail(&file("qemu")));
        };
        agent.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let log = Arc::new(Log::default());
        std::thread::spawn({
            let log = log.clone();
            move || log.fill(log_stream)
        });
        let name = machine.name;
        let disks = machine.disks.clone();
        let mut guest = Self { name, qemu, agent, log, announced: Vec::new(), marks: 0, judged: false, disks, console };
        match receive(&mut guest.agent) {
            Ok((Reply::Ready, _)) => guest,
            other => guest.fail(&format!("does not come up: {other:?}")),
        }
    }

    /// The process of this machine that is its emulator.
    pub fn emulator(&self) -> u32 {
        self.qemu.id() // setpriv has become it
    }

    fn ask(&mut self, request: &Request, payload: &[u8]) -> (Reply, Vec<u8>) {
        let begun = Instant::now();
        let answer = send(&mut self.agent, request, payload).and_then(|()| receive(&mut self.agent));
        if std::env::var_os(TRACE).is_some() {
            let asked: String = format!("{request:?}").chars().take(160).collect();
            eprintln!("{} {:.1} s: {asked}", self.name, begun.elapsed().as_secs_f64());
        }
        match answer {
            Ok((Reply::Failed { why }, _)) => self.fail(&format!("cannot do {request:?}: {why}")),
            Ok(answer) => answer,
            Err(error) => self.fail(&format!("gives no answer to {request:?}: {error}")),
        }
    }

    /// Ends the test with all that is known.
    fn fail(&mut self, what: &str) -> ! {
        self.judged = true;
        panic!("{} {what}\nkernel log:\n{}\nconsole:\n{}", self.name, self.end_of_kernel_log(), tail(&self.console));
    }

    fn end_of_kernel_log(&self) -> String {
        let received = self.log.received();
        let log: Vec<String> = received.records.iter().rev().take(40).rev().map(ToString::to_string).collect();
        log.join("\n")
    }

    /// What a test that fails elsewhere leaves to read: what the kernel and the programs said last, and what has not got on.
    fn last_words(&mut self) {
        if !self.judged {
            eprintln!("{}: kernel log:\n{}", self.name, self.end_of_kernel_log());
        }
        let _ = self.agent.set_read_timeout(Some(LAST_WORDS));
        let request = Request::Run { command: ASK_LAST_WORDS.to_owned() };
        let said = send(&mut self.agent, &request, &[]).and_then(|()| receive::<Reply>(&mut self.agent));
        match said {
            Ok((_, words)) => eprintln!("{}: {}", self.name, String::from_utf8_lossy(&words)),
            Err(error) => eprintln!("{}: says nothing more: {error}", self.name),
        }
    }

    /// Runs a command of the shell, whatever comes of it.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn attempt(&mut self, command: &str) -> Output {
        let (reply, payload) = self.ask(&Request::Run { command: command.to_owned() }, &[]);
        let Reply::Ran { code, stdout } = reply else { unreachable!("the agent answers what it is asked: {reply:?}") };
        let (stdout, stderr) = payload.split_at(stdout as usize);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Output { code, stdout: text(stdout), stderr: text(stderr) }
    }

    /// Runs a command of the shell that must succeed. Returns its standard output.
    ///
    /// # Panics
    /// With its whole output when it does not.
    pub fn run(&mut self, command: &str) -> String {
        let output = self.attempt(command);
        if output.code != 0 {
            self.fail(&format!("`{command}` ended with {}:\n{}{}", output.code, output.stdout, output.stderr));
        }
        output.stdout
    }

    /// Starts a command of the shell that goes on by itself, its output appended to a file. Returns its process id.
    pub fn start_command(&mut self, command: &str, log: &str) -> u32 {
        match self.ask(&Request::Start { command: command.to_owned(), log: log.to_owned() }, &[]).0 {
            Reply::Started { pid } => pid,
            reply => unreachable!("the agent answers what it is asked: {reply:?}"),
        }
    }

    /// Runs a command of the shell until it succeeds. Returns its standard output.
    ///
    /// # Panics
    /// When it does not within the tests' patience, or does not exist.
    pub fn wait_until(&mut self, command: &str) -> String {
        wait_for(command, || {
            let output = self.attempt(command);
            if output.code == SHELL_FAILURE {
                self.fail(&format!("`{command}`: {}", output.stderr));
            }
            (output.code == 0).then_some(output.stdout)
        })
    }

    /// Writes a file.
    pub fn upload(&mut self, path: &str, content: &[u8], mode: u32) {
        self.ask(&Request::Write { path: path.to_owned(), mode }, content);
    }

    /// Reads a file.
    ///
    /// # Panics
    /// When it is not there.
    pub fn download(&mut self, path: &str) -> Vec<u8> {
        self.look(path).unwrap_or_else(|| self.fail(&format!("has no {path}")))
    }

    /// Reads a file that may not be there.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn look(&mut self, path: &str) -> Option<Vec<u8>> {
        let (reply, content) = self.ask(&Request::Read { path: path.to_owned() }, &[]);
        (reply == Reply::Content).then_some(content)
    }

    /// How many lines a file has that may not be there yet.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn lines(&mut self, path: &str) -> u64 {
        self.look(path).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count() as u64
    }

    /// Whether a process is there.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn lives(&mut self, process: u32) -> bool {
        self.look(&format!("/proc/{process}/stat")).is_some()
    }

    /// Waits for the end of a process.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait_for_end(&mut self, process: u32) {
        wait_for(&format!("process {process} to end"), || (!self.lives(process)).then_some(()));
    }

    /// What a daemon or a receiver says of itself, if it answers on its socket.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn status(&mut self, socket: &str) -> Option<Value> {
        let (reply, body) = self.ask(&Request::Get { socket: socket.to_owned(), path: "/v1/status".to_owned() }, &[]);
        (reply == Reply::Content).then(|| serde_json::from_slice(&body).ok()).flatten()
    }

    /// The device of a disk, by its serial number.
    ///
    /// # Panics
    /// When there is none.
    pub fn disk(&mut self, serial: &str) -> String {
        let found = self.run(&format!("grep -lx '{serial}' /sys/block/*/serial"));
        format!("/dev/{}", found.trim().split('/').nth(3).expect("/sys/block/NAME/serial"))
    }

    /// Says that the kernel may complain, from now on and so far, with these words.
    pub fn announce(&mut self, words: &str) {
        self.announced.push(words.to_owned());
    }

    /// The kernel's log up to now.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn kernel_log(&mut self) -> Vec<Record> {
        self.marks += 1;
        let mark = format!("farside: mark {}", self.marks);
        self.run(&format!("echo '<6>{mark}' >/dev/kmsg"));
        if !self.log.wait_for(&mark) {
            self.fail("does not send its kernel's log");
        }
        self.log.received().records.clone()
    }

    /// Fails the test if the kernel complained of something that was not announced.
    fn judge(&mut self) {
        if std::mem::replace(&mut self.judged, true) || std::thread::panicking() {
            return;
        }
        let is_announced = |record: &Record| self.announced.iter().any(|words| record.text.contains(words));
        let records = self.log.received().records.clone();
        let trouble: Vec<String> =
            records.iter().filter(|r| r.is_trouble() && !is_announced(r)).map(ToString::to_string).collect();
        if !trouble.is_empty() {
            self.fail(&format!("had trouble that no test announced:\n{}", trouble.join("\n")));
        }
    }

    /// A proper end: everything is unmounted or synced by whoever calls this; then the guest is switched off.
    ///
    /// # Panics
    /// When the kernel complained of something that was not announced.
    pub fn shut_down(mut self) {
        self.run("sync");
        self.kernel_log();
        self.end(|disks, kill| {
            kill();
            disks.iter().for_each(|disk| disk.platter.switch_off());
        });
    }

    /// Of a Debian: the boot is over, and every unit is well.
    ///
    /// # Panics
    /// With what failed, and what it said.
    pub fn booted(&mut self) {
        let state = self.attempt("systemctl is-system-running --wait").stdout;
        if state.trim() != "running" {
            let failed = self.attempt("systemctl --failed --no-legend; journalctl -b -p warning --no-pager | tail -30").stdout;
            self.fail(&format!("is {} after its boot:\n{failed}", state.trim()));
        }
    }

    /// Of a Debian: `systemctl poweroff`, and the end of the machine after it: services stop, file systems are unmounted, what
    /// is left is killed.
    ///
    /// # Panics
    /// When it does not come to its end, or the kernel complained of something that was not announced.
    pub fn power_off(mut self) {
        // systemd gives up the socket of its services before it ends the last of them: a journal whose watchdog is due just then says so.
        self.announce("Failed to send WATCHDOG=1 notification message");
        self.run("systemctl --no-block poweroff");
        // The machine's end is the end of its log.
        self.log.wait_for_end();
        if !self.log.received().ended {
            self.fail("does not switch itself off");
        }
        self.qemu.wait().expect("our own child");
        self.disks.iter().for_each(|disk| disk.platter.switch_off());
        self.judge();
    }

    /// The power goes, for machine and disks at one moment, when there is something in the disks' caches; of what the disks had not made durable, each block stays with
    /// `kept` chances in eight. Returns how many blocks were lost.
    ///
    /// # Panics
    /// When nobody writes without flushing, or the kernel complained of something that was not announced.
    pub fn cut_power(mut self, rng: &mut Rng, kept: u64) -> usize {
        let mut lost = 0;
        self.end(|disks, kill| {
            let platters: Vec<&Platter> = disks.iter().map(|disk| &disk.platter).collect();
            lost = forgetful::cut_all(&platters, rng, kept, kill);
        });
        lost
    }

    fn end(&mut self, how: impl FnOnce(&[Disk], &mut dyn FnMut())) {
        let qemu = &mut self.qemu;
        how(&self.disks, &mut || {
            qemu.kill().expect("our own child");
            qemu.wait().expect("our own child");
        });
        self.log.wait_for_end();
        self.judge();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.qemu.try_wait().is_ok_and(|status| status.is_none()) {
            if std::thread::panicking() {
                self.last_words();
            }
            let _ = self.qemu.kill();
            let _ = self.qemu.wait();
            self.log.wait_for_end();
        }
        self.judge();
    }
}

/// The connection that qemu makes when it starts; `None` if it ends before.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Option<UnixStream> {
    listener.set_nonblocking(true).expect("a socket");
    let stream = wait_for("qemu to start", || match listener.accept() {
        Ok((stream, _)) => Some(Some(stream)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let has_ended = qemu.try_wait().expect("our own child").is_some();
            has_ended.then_some(None)
        }
        Err(error) => panic!("qemu cannot be listened to: {error}"),
    })?;
    stream.set_nonblocking(false).expect("a socket");
    Some(stream)
}

impl Log {
    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes records until the guest is gone.
    fn fill(&self, from: UnixStream) {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while from.read_until(0, &mut bytes).is_ok_and(|len| len > 0) {
            let text = String::from_utf8_lossy(&bytes);
            if let Some(record) = Record::parse(text.trim_end_matches('\0')) {
                self.received().records.push(record);
                self.grown.notify_all();
            }
            bytes.clear();
        }
        self.received().ended = true;
        self.grown.notify_all();
    }

    /// Waits, patiently, until there is more to come no more or the condition holds.
    fn wait_until(&self, mut condition: impl FnMut(&[Record]) -> bool) -> bool {
        let waiting = |received: &mut Received| !received.ended && !condition(&received.records);
        let (received, _) =
            self.grown.wait_timeout_while(self.received(), PATIENCE, waiting).unwrap_or_else(PoisonError::into_inner);
        condition(&received.records)
    }

    /// Whether a record with these words has come or comes.
    fn wait_for(&self, words: &str) -> bool {
        self.wait_until(|records| records.iter().rev().any(|record| record.text == words))
    }

    fn wait_for_end(&self) {
        self.wait_until(|_| false);
    }
}
