//! A protected host and its gateway, as the tests of block devices want them: machines, daemons, an application that notices
//! what goes wrong (`farside-vm-load`).

use std::sync::Arc;

use farside_tests::verify::Rng;
use farside_tests::{wait_for, wait_until};
use serde_json::Value;

use crate::counted::Threads;
use crate::gateway::{Gateway, md5_of};
use crate::toolbox::Toolbox;
use crate::{DiskSpec, Guest, Kernel, Machine, Network};

/// How long the data disk is, if nobody says otherwise.
pub const VOLUME_MIB: usize = 64;

/// The file of a guest to which an application writes a line for everything that it has synced.
pub const PROMISED: &str = "/run/progress";

/// The command line, on the host.
pub const CLI: &str = "farside --socket /run/farsided.sock";

const HOST_CONFIGURATION: &str = r#"
[source]
name = "host1"
state_dir = "/state/farside"
api_socket = "/run/farsided.sock"

[limits]
cool_after_seconds = 1

[[group]]
name = "default"
epoch_interval = "500ms"
keep = KEEP
span = "0s"
"#;

/// A host without volumes, paired with its gateway. Its data disk's path is in `/run/backing`.
#[derive(Debug)]
pub struct Host {
    /// The host.
    pub guest: Guest,
    /// The gateway.
    pub gateway: Gateway,
    /// The host's machine.
    pub machine: Machine,
    keep: u32,
    daemon: u32,
    load: Option<u32>,
    /// The test itself writes past the tap.
    bypasses: bool,
}

/// What a host and its gateway are to have beside what all have.
#[derive(Debug)]
pub struct Setup {
    kernel: Kernel,
    modules: Vec<&'static str>,
    emulated_gateway: bool,
    gateway_modules: Vec<&'static str>,
    debian_programs: Vec<&'static str>,
    content: Vec<u8>,
    disks: Vec<DiskSpec>,
    gateway_disks: Vec<DiskSpec>,
    keep: u32,
    debian: bool,
    processors: u32,
    instruction_ns: Option<u64>,
    toolbox: Option<Arc<Toolbox>>,
}

impl Setup {
    /// A host with this kernel and these modules, an empty data disk, and a gateway that keeps every point.
    pub fn new(kernel: Kernel, modules: &[&'static str]) -> Self {
        let (modules, content) = (modules.to_vec(), vec![0; VOLUME_MIB << 20]);
        Self {
            kernel,
            modules,
            emulated_gateway: false,
            gateway_modules: Vec::new(),
            debian_programs: Vec::new(),
            content,
            disks: Vec::new(),
            gateway_disks: Vec::new(),
            keep: 10_000,
            debian: false,
            processors: 1,
            instruction_ns: None,
            toolbox: None,
        }
    }

    /// With this on the data disk, which is as long.
    pub fn content(mut self, content: Vec<u8>) -> Self {
        self.content = content;
        self
    }

    /// With one more disk at the host.
    pub fn disk(mut self, disk: DiskSpec) -> Self {
        self.disks.push(disk);
        self
    }

    /// With these modules at the gateway, which is an emulated one.
    pub fn gateway_modules(mut self, modules: &[&'static str]) -> Self {
        self.emulated_gateway = true;
        self.gateway_modules.extend(modules);
        self
    }

    /// With these programs of Debian at the host, too, and at an emulated gateway.
    pub fn debian_programs(mut self, names: &[&'static str]) -> Self {
        self.debian_programs.extend(names);
        self
    }

    /// With one more disk at the gateway, which is an emulated one.
    pub fn gateway_disk(mut self, disk: DiskSpec) -> Self {
        self.emulated_gateway = true;
        self.gateway_disks.push(disk);
        self
    }

    /// With a host that is a Debian, with udev and LVM.
    pub fn debian(mut self) -> Self {
        self.debian = true;
        self
    }

    /// With a host of so many processors.
    pub fn processors(mut self, number: u32) -> Self {
        self.processors = number;
        self
    }

    /// With a host as [`Machine::counting_instructions`] makes it.
    pub fn counting_instructions(mut self, each_ns: u64) -> Self {
        self.instruction_ns = Some(each_ns);
        self
    }

    /// With a toolbox at the host.
    pub fn toolbox(mut self, toolbox: &Arc<Toolbox>) -> Self {
        self.toolbox = Some(toolbox.clone());
        self
    }

    /// With so many points kept.
    pub fn keep(mut self, points: u32) -> Self {
        self.keep = points;
        self
    }
}

impl Host {
    /// Boots both. `modules` are the host's.
    ///
    /// # Panics
    /// When something does not come up.
    pub fn boot(kernel: Kernel, modules: &[&'static str]) -> Self {
        Self::with(Setup::new(kernel, modules))
    }

    /// Boots both.
    ///
    /// # Panics
    /// When something does not come up.
    pub fn with(setup: Setup) -> Self {
        let network = setup.emulated_gateway.then(Network::new);
        let emulated = network.as_ref().map(|network| {
            let machine = Machine::new("gateway", Kernel::Stock)
                .modules(&setup.gateway_modules)
                .programs(&["farside", "farside-receiver"])
                .debian_programs(&["mke2fs"])
                .debian_programs(&setup.debian_programs)
                .disk(DiskSpec::blank("store", 768))
                .on(network);
            setup.gateway_disks.into_iter().fold(machine, Machine::disk)
        });
        let machine = match setup.debian {
            true => Machine::debian("host", setup.kernel),
            false => {
                Machine::new("host", setup.kernel).debian_programs(&["mke2fs", "e2fsck", "resize2fs", "dmsetup", "nbd-client"])
            }
        };
        let mut machine = machine
            .processors(setup.processors)
            .modules(&setup.modules)
            .debian_programs(&setup.debian_programs)
            .programs(&["farside", "farsided", "farside-vm-bench", "farside-vm-die", "farside-vm-load"])
            .disk(DiskSpec { content: setup.content, ..DiskSpec::blank("data", 0) })
            .disk(DiskSpec::blank("state", 64))
            .disk(DiskSpec { logical_block: 4096, ..DiskSpec::blank("wide", 8) });
        machine = match &network {
            Some(network) => machine.on(network),
            None => machine.on_this_machine(),
        };
        machine = setup.disks.into_iter().fold(machine, Machine::disk);
        machine = setup.instruction_ns.into_iter().fold(machine, Machine::counting_instructions);
        machine = setup.toolbox.iter().fold(machine, Machine::toolbox);
        let gateway = match emulated.zip(network) {
            Some((machine, network)) => Gateway::emulated(machine, network),
            None => Gateway::here(),
        };
        let mut guest = machine.boot();
        let state = guest.disk("state");
        guest.run(&format!("$(command -v /bin/mke2fs || command -v mke2fs) -q -t ext4 {state}"));
        let keep = setup.keep;
        let mut host = Self { guest, machine, gateway, keep, daemon: 0, load: None, bypasses: false };
        host.prepare();
        host.start_daemon();
        host.pair();
        host
    }

    /// Pairs the host with the gateway.
    ///
    /// # Panics
    /// When they refuse each other.
    pub fn pair(&mut self) {
        let token = self.gateway.token();
        self.guest.run(&format!("{CLI} pair '{token}'"));
    }

    /// The addresses of the host and of its emulated gateway.
    pub fn addresses(&self) -> [String; 2] {
        [self.machine.address(), self.gateway.address()]
    }

    /// What a boot must find before the daemon starts. The configuration lies beside the state.
    fn prepare(&mut self) {
        let (state, data) = (self.guest.disk("state"), self.guest.disk("data"));
        self.guest.run(&format!("mkdir -p /state && mount -t ext4 {state} /state && echo {data} > /run/backing"));
        self.guest.upload("/state/farsided.toml", HOST_CONFIGURATION.replace("KEEP", &self.keep.to_string()).as_bytes(), 0o644);
    }

    /// Starts the daemon and waits until it serves what is configured.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_daemon(&mut self) {
        self.daemon_without_its_disks();
        wait_until("the volumes to be served", || {
            let Some(status) = self.status() else {
                assert!(self.guest.lives(self.daemon), "the daemon ended");
                return Err("no answer".to_owned());
            };
            let reasons = status["reasons"].as_array().cloned().unwrap_or_default();
            let late = reasons.iter().any(|r| r["code"] == "starting" || r["code"] == "not_served");
            if late { Err(format!("{reasons:?}")) } else { Ok(()) }
        });
    }

    /// Starts the daemon while its gateway is out of reach, and gives what its group says then: nothing is published, and nothing cools,
    /// before that was seen.
    ///
    /// # Panics
    /// When a volume is not served in time.
    pub fn start_daemon_unheard(&mut self) -> Value {
        self.gateway.cut();
        self.start_daemon();
        let group = self.wait_for_group("a status", |_| true);
        self.gateway.heal();
        group
    }

    /// Starts the daemon, which will not find its disks yet.
    ///
    /// # Panics
    /// When the host does not answer.
    pub fn daemon_without_its_disks(&mut self) {
        self.daemon = self.guest.start_command("exec farsided --config /state/farsided.toml", "/run/daemon.log");
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it is not running.
    pub fn kill_daemon(&mut self) {
        self.guest.run(&format!("kill -9 {}", self.daemon));
        self.guest.wait_for_end(self.daemon);
    }

    /// Starts a daemon and kills it so many microseconds later, wherever it is by then.
    ///
    /// # Panics
    /// When it ended by itself before that.
    pub fn start_and_kill_daemon(&mut self, after_us: u64) {
        let daemon = "farsided --config /state/farsided.toml >>/run/daemon.log 2>&1 & daemon=$!";
        let killed = "kill -9 $daemon || exit 1; wait $daemon; true";
        self.guest.run(&format!("{daemon}; usleep {after_us}; {killed}"));
    }

    /// Starts it and has it die when the thread that opens `file` has entered or left so many system calls more.
    pub fn start_daemon_that_dies(&mut self, file: &str, stops: u32) {
        self.guest.run(&format!("farside-vm-die {file} {stops} farsided --config /state/farsided.toml >>/run/daemon.log 2>&1"));
    }

    /// A planned stop.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop_daemon(&mut self) {
        // What the kernel's NBD client says of a device that is left for the next daemon.
        self.guest.announce("Receive control failed");
        self.guest.run(&format!("kill {}", self.daemon));
        self.guest.wait_for_end(self.daemon);
    }

    /// The threads of the daemon that serve the volume.
    ///
    /// # Panics
    /// When there is none.
    pub fn queue_threads(&mut self) -> Threads {
        Threads::of(&mut self.guest, self.daemon, "queue-")
    }

    /// How the volume's data comes and goes, as its status says.
    ///
    /// # Panics
    /// When there is no volume of ublk's.
    pub fn data_path(&mut self) -> String {
        let path = self.data_path_status();
        assert!(path["why"].as_str().is_some_and(|why| !why.is_empty()), "it says why: {path}");
        path["name"].as_str().expect("a name").to_owned()
    }

    /// Requests that were copied by themselves: the device was made for zero copy.
    ///
    /// # Panics
    /// When there is no volume of ublk's.
    pub fn copied(&mut self) -> u64 {
        self.data_path_status()["copied"].as_u64().expect("a number")
    }

    fn data_path_status(&mut self) -> Value {
        let status = self.guest.run(&format!("{CLI} volume show data --json"));
        let mut status: Value = serde_json::from_str(&status).expect("JSON");
        status["tap"]["data_path"].take()
    }

    /// What the daemon says of itself, if it answers.
    pub fn status(&mut self) -> Option<Value> {
        self.guest.status("/run/farsided.sock")
    }

    /// The status of the volume's group, once it satisfies a condition.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_for_group(&mut self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || self.status().map(|status| status["groups"][0].clone()).filter(&condition))
    }

    /// Starts an application on the file system at `/mnt`.
    ///
    /// # Panics
    /// When the host does not answer.
    pub fn start_load(&mut self) {
        self.start_load_in("/mnt");
    }

    /// Starts an application on a folder, which must be empty if anybody wants to know later what it left.
    ///
    /// # Panics
    /// When the host does not answer.
    pub fn start_load_in(&mut self, folder: &str) {
        self.start_application(&format!("exec farside-vm-load write {folder} {PROMISED} /run/stop"));
    }

    /// Starts a command that writes a line to [`PROMISED`] for everything that it has synced, says nothing else, and never ends.
    pub fn start_application(&mut self, command: &str) {
        self.load = Some(self.guest.start_command(command, "/run/load.log"));
    }

    /// Waits until the application has synced so many records more.
    ///
    /// # Panics
    /// When it has met an error, or hangs.
    pub fn wait_for_load(&mut self, records: u64) {
        let goal = self.guest.lines(PROMISED) + records;
        wait_for("the application to get on", || {
            self.load_lives();
            (self.guest.lines(PROMISED) >= goal).then_some(())
        });
    }

    /// The application has met no error.
    ///
    /// # Panics
    /// When it has.
    pub fn load_lives(&mut self) {
        let load = self.load.expect("it was started");
        let lives = self.guest.lives(load);
        let said = String::from_utf8_lossy(&self.guest.download("/run/load.log")).into_owned();
        assert!(lives && said.is_empty(), "the application met an error: {said}");
    }

    /// Kills the daemon again and again under the application and starts it again; now and then the kernel has more to keep
    /// for it than that.
    ///
    /// # Panics
    /// When the application notices.
    pub fn kill_under_load(&mut self, kills: u64) {
        for kill in 0..kills {
            self.wait_for_load(8);
            self.kill_daemon();
            if kill % 3 == 2 {
                self.guest.start_command("fstrim /mnt && sync", "/run/trim.log"); // waits in the kernel meanwhile
            }
            self.start_daemon();
            self.load_lives();
        }
        self.wait_for_load(20);
        self.guest.run("test ! -s /run/trim.log");
    }

    /// From now on somebody writes over one file at `/mnt`, past the page cache, and never syncs. Back when he is at it.
    ///
    /// # Panics
    /// When he is not.
    pub fn scribble(&mut self) {
        self.guest.run("test -e /mnt/scribble || dd if=/dev/zero of=/mnt/scribble bs=64k count=64 conv=fsync 2>/dev/null");
        let scribble = "while dd if=/dev/urandom of=/mnt/scribble bs=64k count=64 oflag=direct conv=notrunc; do :; done";
        self.guest.start_command(scribble, "/run/scribble.log");
        self.guest.wait_until("grep -q 'records out' /run/scribble.log");
    }

    /// Ends the application, which must have met no error.
    ///
    /// # Panics
    /// When it has.
    pub fn stop_load(&mut self) {
        self.load_lives();
        let load = self.load.take().expect("it was started");
        self.guest.run("touch /run/stop");
        self.guest.wait_for_end(load);
        let said = self.guest.run("cat /run/load.log; rm -f /run/stop");
        assert!(said.is_empty(), "the application ended with: {said}");
    }

    /// Takes the power from the host and boots it on the same disks. Says how many blocks were lost.
    ///
    /// # Panics
    /// When it does not come up again.
    pub fn cut_power(self, rng: &mut Rng, kept: u64) -> (Self, usize) {
        let lost = self.guest.cut_power(rng, kept);
        let mut machine = self.machine;
        let guest = machine.boot();
        let mut host = Self { guest, machine, load: None, ..self };
        host.prepare();
        (host, lost)
    }

    /// What the disk that holds the data has on it.
    pub fn disk(&self) -> Vec<u8> {
        self.machine.disk_content("data")
    }

    /// What of it would be left if the power went now, at worst.
    pub fn durable(&self) -> Vec<u8> {
        self.machine.durable_content("data")
    }

    /// Restores the newest point at the gateway: it is what the disk holds.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_newest_point_is_the_disk(&mut self) {
        let disk = self.disk();
        self.assert_newest_point_is(&disk);
    }

    /// Restores the newest point at the gateway: it is this.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_newest_point_is(&mut self, content: &[u8]) {
        let restored = self.gateway.restore("data", "latest");
        assert!(restored == content, "the newest point is not what the disk holds");
    }

    /// Restores a point at the gateway, by its id: it is this.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_point_is(&mut self, point: &str, content: &[u8]) {
        assert!(self.gateway.restore("data", point) == content, "point {point} is not what the disk held");
    }

    /// Restores the newest point at the gateway: it is what a device of the host reads as.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_newest_point_reads_as(&mut self, device: &str) {
        let here = self.guest.run(&format!("dd if={device} bs=1M iflag=direct 2>/dev/null | md5sum"));
        let there = md5_of(&self.gateway.restore("data", "latest"));
        assert!(here.split(' ').next() == Some(&there), "the newest point is not what {device} holds");
    }

    /// From now on the test writes past the tap, which the daemon may say.
    pub fn expect_bypass(&mut self) {
        self.bypasses = true;
    }

    /// Ends everything in order.
    ///
    /// # Panics
    /// When something is wrong with the store, the kernels complained, or the daemon took something for a write past its tap
    /// that was none.
    pub fn shut_down(mut self) {
        self.stop_daemon();
        if !self.bypasses {
            assert_eq!(self.guest.attempt("grep 'past its tap' /run/daemon.log").stdout, "", "a false alarm");
        }
        self.end_without_daemon();
    }

    /// Ends everything in order once the daemon has been stopped.
    ///
    /// # Panics
    /// When something is wrong with the store, or the kernels complained.
    pub fn end_without_daemon(self) {
        self.guest.shut_down();
        self.gateway.shut_down();
    }
}

/// Streaming, nothing dirty, everything published; of every volume.
pub fn is_quiet(group: &Value) -> bool {
    let rests = |volume: &Value| volume["state"]["state"] == "streaming" && volume["dirty_bytes"] == 0;
    group["backlog_bytes"] == 0
        && group["layers_unpublished"] == 0
        && group["last_point"].is_object()
        && group["volumes"].as_array().is_some_and(|volumes| !volumes.is_empty() && volumes.iter().all(rests))
}
