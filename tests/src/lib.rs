//! Real processes on loopback: a receiver and a daemon in a temporary directory, killed and started at will.
//!
//! Tests wait for conditions with a generous deadline, never for time. Every child is ended by its own handle.

pub mod drill;
pub mod forgetful;
pub mod load;
pub mod markers;
pub mod mount;
pub mod netns;
pub mod postgres;
pub mod power;
pub mod verify;
pub mod way;

use std::fmt::Display;
use std::fs::File;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The exit code of `farside` when what was named is not there.
const NOTHING_THERE: i32 = 5;
/// The same when nobody answers.
const UNREACHABLE: i32 = 3;
/// Below those that a kernel chooses for whoever names none.
const PORTS: std::ops::Range<u16> = 12_000..20_000;

/// How long a condition may take before a test gives up. Long, since the machine may be slow; passing tests never see it.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// The folder in which cargo put the binaries.
///
/// # Panics
/// When the test does not run from a cargo target directory.
pub fn bin_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a process knows its file");
    let dir = exe.parent().expect("a file has a folder");
    if dir.ends_with("deps") { dir.parent().expect("deps has a parent").to_owned() } else { dir.to_owned() }
}

/// One of our programs.
///
/// # Panics
/// When it has not been built.
pub fn program(name: &str) -> Command {
    let path = bin_dir().join(name);
    assert!(path.exists(), "{} is not built; run the tests through `cargo run --release -p xtask -- test`", path.display());
    Command::new(path)
}

/// A tool of the system, with its sbin folders searched.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command
}

/// Runs a command that must succeed.
///
/// # Panics
/// With its whole output when it does not.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// What a command of `farside` that must succeed says as JSON.
///
/// # Panics
/// As [`run`].
pub fn json(command: &mut Command) -> Value {
    serde_json::from_slice(&run(command.arg("--json")).stdout).expect("JSON")
}

/// How long to wait, at least and at most, before asking again.
const POLL: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));

/// Waits until `condition` gives something.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    wait_until(what, || condition().ok_or("it is not so"))
}

/// The same, of a `condition` that says what there is instead.
///
/// # Panics
/// As [`wait_for`], with what there was last.
pub fn wait_until<T, S: Display>(what: &str, mut condition: impl FnMut() -> Result<T, S>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = Instant::now();
        match condition() {
            Ok(value) => return value,
            Err(instead) => assert!(Instant::now() < deadline, "gave up waiting for {what}: {instead}"),
        }
        // Who asks takes little of the time of who answers, which may be all that an emulated machine has.
        std::thread::park_timeout((4 * asked.elapsed()).clamp(POLL.0, POLL.1));
    }
}

/// What `farside status --json` says. It gives a service up that is silent for some seconds, as one may be on a busy machine: it is asked
/// again.
///
/// # Panics
/// When it does not answer within [`PATIENCE`], or what it says is not to be understood.
pub fn status_by(farside: &mut Command) -> Value {
    let output = wait_until("an answer", || {
        let output = farside.args(["status", "--json"]).stdin(Stdio::null()).output().expect("it starts");
        match output.status.code() {
            Some(UNREACHABLE) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            _ => Ok(output),
        }
    });
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Whether a status says that everything is published; otherwise what it says.
///
/// # Errors
/// The status.
pub fn is_quiet(status: Value) -> Result<(), String> {
    let quiet = |volume: &Value| volume["state"]["state"] == "streaming" && volume["dirty_bytes"] == 0;
    let all_quiet = |group: &Value| {
        let volumes = group["volumes"].as_array().is_some_and(|volumes| volumes.iter().all(quiet));
        volumes && group["backlog_bytes"] == 0 && group["last_point"].is_object() && group["layers_unpublished"] == 0
    };
    match status["groups"].as_array() {
        Some(groups) if !groups.is_empty() && groups.iter().all(all_quiet) => Ok(()),
        _ => Err(format!("{status:#}")),
    }
}

/// The environment variable that asks the tests which wear things out for hours of it; `xtask test --hours N` sets it.
pub const HOURS: &str = "FARSIDE_TEST_HOURS";

/// The environment variable that names the seed of such a test's choices; without it, they are the same on every run, and
/// others on each run of hours.
pub const SEED: &str = "FARSIDE_TEST_SEED";

/// For how long a test goes on beyond what it does at least, and by which choices. If it fails, it says how it is repeated; what
/// processes and machines do beside the choices is never quite the same.
#[derive(Debug)]
pub struct Endurance {
    begun: Instant,
    until: Instant,
    seed: u64,
}

impl Endurance {
    /// From now on, as long as [`HOURS`] says; without it, not at all, and by the `usual` seed.
    ///
    /// # Panics
    /// When a variable holds no number.
    pub fn from_environment(usual: u64) -> Self {
        let hours: f64 = std::env::var(HOURS).map_or(0.0, |text| text.parse().expect("a number of hours"));
        let seed = std::env::var(SEED).ok().map(|text| text.parse().expect("a number"));
        let of_the_day = || std::time::UNIX_EPOCH.elapsed().map_or(usual, |since| since.as_secs());
        let seed = seed.unwrap_or_else(|| if hours > 0.0 { of_the_day() } else { usual });
        let begun = Instant::now();
        Self { begun, until: begun + Duration::from_secs_f64(hours * 3600.0), seed }
    }

    /// Whether there is time left.
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// What decides its choices.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Says what was done.
    pub fn report(&self, what: &str) {
        println!("{what} in {} s, by seed {}", self.begun.elapsed().as_secs(), self.seed);
    }
}

impl Drop for Endurance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let file =
                std::env::current_exe().ok().and_then(|exe| Some(exe.file_stem()?.to_str()?.rsplit_once('-')?.0.to_owned()));
            let package = std::env::var("CARGO_PKG_NAME").unwrap_or_default();
            let thread = std::thread::current();
            eprintln!(
                "after {} s; to repeat it: {SEED}={} cargo test --release -p {package} --test {} {} -- --exact --nocapture",
                self.begun.elapsed().as_secs(),
                self.seed,
                file.unwrap_or_default(),
                thread.name().unwrap_or_default()
            );
        }
    }
}

/// CPU time (own threads and children that were waited for) and peak resident memory in KiB of a process; zeroes when it is gone.
pub fn usage(pid: u32) -> (Duration, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name: state is field 0, utime 11, stime 12, cutime 13, cstime 14; in ticks.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks: u64 = (11..=14).filter_map(|i| fields.get(i)?.parse::<u64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).expect("Linux has it").expect("and says it");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    (Duration::from_secs_f64(ticks as f64 / per_second as f64), peak.unwrap_or(0))
}

/// A child process that does not outlive its owner.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    /// Takes a child; `name` is for messages.
    pub fn new(child: Child, name: &'static str) -> Self {
        Self { child, name }
    }

    /// `kill -9`, and wait until it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// SIGTERM, and wait for a clean end.
    ///
    /// # Panics
    /// When it ends in any other way.
    pub fn stop(mut self) {
        self.signal(libc::SIGTERM);
        let status = wait_for("a clean stop", || self.child.try_wait().expect("our own child"));
        assert!(status.success(), "{} ended with {status} (signal {:?})", self.name, status.signal());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let signal = nix::sys::signal::Signal::try_from(signal).expect("a signal");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).expect("our own child");
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB.
    ///
    /// # Panics
    /// When it is gone.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("a process has VmRSS");
        line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A volume of the site: its backing is a sparse file.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// Name.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Group.
    pub group: String,
}

/// A protected host and its gateway, in one temporary directory.
#[derive(Debug)]
pub struct Site {
    /// The directory.
    pub dir: TempDir,
    /// The daemon while it runs.
    pub daemon: Option<Process>,
    /// The receiver while it runs.
    pub receiver: Option<Process>,
    /// What both find in their environment when they are started.
    pub environment: Vec<(&'static str, String)>,
    volumes: Vec<VolumeSpec>,
    /// The address of the store and the file with its keys, where it is in a bucket.
    bucket: Option<(String, PathBuf)>,
    /// The network namespaces of daemon and receiver, where they have some.
    namespaces: Option<[String; 2]>,
}

/// A port that nobody has over UDP or TCP, nor is given while a service that has it is started anew: not by this process, and not
/// by another one that runs such tests, since each port is a name that only one process of a machine can have, until it ends.
fn free_port() -> u16 {
    static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    let begin = std::process::id().wrapping_mul(64);
    let ports = (0..count).map(|_| begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count);
    let is_free = |port: &u16| {
        let address = (std::net::Ipv4Addr::LOCALHOST, *port);
        std::net::UdpSocket::bind(address).is_ok() && std::net::TcpListener::bind(address).is_ok()
    };
    let take = |port: &u16| {
        let name = SocketAddr::from_abstract_name(format!("farside-test-port-{port}")).expect("a name");
        let is_ours = UnixListener::bind_addr(&name).map(|name| TAKEN.lock().expect("no panic").push(name)).is_ok();
        is_ours && is_free(port)
    };
    ports.map(|offset| PORTS.start + offset as u16).find(take).expect("one of 8,000 ports is free")
}

impl Site {
    /// Has a gateway wait so long after its start until it fences who is away: from its next start or reload on.
    pub fn fence_after(&self, span: &str) {
        let file = self.path("gateway/receiver.toml");
        let text = std::fs::read_to_string(&file).expect("a configuration");
        let line = |line: &&str| line.starts_with("fence_after = ");
        let old = text.lines().find(line).expect("it is in every site's configuration");
        std::fs::write(&file, text.replace(old, &format!("fence_after = \"{span}\""))).expect("written");
    }

    /// Writes the configuration; starts nothing.
    pub fn new(volumes: &[VolumeSpec], epoch: &str, keep: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("farside-test-").tempdir().expect("a temporary directory");
        let at = dir.path();
        let port = free_port();
        std::fs::create_dir_all(at.join("gateway")).expect("mkdir");
        std::fs::create_dir_all(at.join("host")).expect("mkdir");
        let receiver = format!(
            "[receiver]\nlisten = \"127.0.0.1:{port}\"\nstore = \"{0}/gateway/store\"\nstate_dir = \"{0}/gateway/state\"\n\
             api_socket = \"{0}/gateway/api.sock\"\nfence_after = \"0s\"\n", // no test waits for time to pass
            at.display()
        );
        std::fs::write(at.join("gateway/receiver.toml"), receiver).expect("write");
        let mut source = format!(
            "[source]\nname = \"host1\"\nstate_dir = \"{0}/host/state\"\napi_socket = \"{0}/host/api.sock\"\n",
            at.display()
        );
        let mut groups: Vec<&str> = volumes.iter().map(|v| v.group.as_str()).collect();
        groups.sort_unstable();
        groups.dedup();
        for group in groups {
            source += &format!("[[group]]\nname = \"{group}\"\nepoch_interval = \"{epoch}\"\nkeep = {keep}\nspan = \"0s\"\n");
        }
        for v in volumes {
            let backing = at.join("host").join(format!("{}.img", v.name));
            File::create(&backing).and_then(|f| f.set_len(v.bytes)).expect("a sparse file");
            source += &format!(
                "[[volume]]\nname = \"{}\"\ngroup = \"{}\"\nbacking = \"{}\"\ntap = \"nbd:unix:{}\"\n",
                v.name,
                v.group,
                backing.display(),
                at.join("host").join(format!("{}.nbd", v.name)).display()
            );
        }
        std::fs::write(at.join("host/farsided.toml"), source).expect("write");
        Self {
            dir,
            daemon: None,
            receiver: None,
            environment: Vec::new(),
            volumes: volumes.to_vec(),
            bucket: None,
            namespaces: None,
        }
    }

    /// Another host with the gateway of this one, and the same volumes: its disks are in a folder of its own. Starts nothing.
    pub fn another_host(&self, name: &str, epoch: &str, keep: u32) -> Self {
        let other = Self::new(&self.volumes, epoch, keep);
        let file = other.path("host/farsided.toml");
        let toml = std::fs::read_to_string(&file).expect("just written");
        std::fs::write(&file, toml.replace("\"host1\"", &format!("\"{name}\""))).expect("write");
        std::fs::remove_dir_all(other.path("gateway")).expect("just made");
        std::os::unix::fs::symlink(self.path("gateway"), other.path("gateway")).expect("a link");
        other
    }

    /// One volume `data` in the group `default`, both daemons up, paired.
    pub fn with_volume(bytes: u64, epoch: &str, keep: u32) -> Self {
        let spec = VolumeSpec { name: "data".into(), bytes, group: "default".into() };
        let mut site = Self::new(&[spec], epoch, keep);
        site.start_all();
        site
    }

    /// Keeps points in a bucket, whose keys are `NAME=VALUE` lines; before anything is started. They wait for others for a second.
    pub fn keep_points_in(&mut self, url: &str, keys: &str) {
        let file = self.path("gateway/keys");
        std::fs::write(&file, keys).expect("write");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
        let (keys, staging) = (file.display(), self.path("gateway/staging"));
        let staging = staging.display();
        let text = format!(
            "[receiver]\nstore = \"{url}\"\nstore_credentials = \"{keys}\"\nstaging = \"{staging}\"\npublish_every = \"1s\"\n"
        );
        std::fs::create_dir_all(self.path("gateway/receiver.d")).expect("mkdir");
        std::fs::write(self.path("gateway/receiver.d/bucket.toml"), text).expect("write");
        self.bucket = Some((url.to_owned(), file));
    }

    /// `farside` with these arguments and the store's address.
    pub fn farside_at_store(&self, arguments: &[&str]) -> Command {
        let mut command = program("farside");
        command.args(arguments);
        match &self.bucket {
            None => command.arg(self.store()),
            Some((url, keys)) => command.arg(url).env("FARSIDE_STORE_CREDENTIALS", keys),
        };
        command
    }

    /// The address of the bucket, and the file with its keys.
    pub fn bucket_address(&self) -> Option<(String, PathBuf)> {
        self.bucket.clone()
    }

    /// Puts both into a network; before anything is started.
    pub fn connect_through(&mut self, network: &netns::Network) {
        let file = self.path("gateway/receiver.toml");
        let toml = std::fs::read_to_string(&file).expect("written above");
        std::fs::write(&file, toml.replace("127.0.0.1", netns::GATEWAY_ADDRESS)).expect("write");
        self.namespaces = Some([network.host.clone(), network.gateway.clone()]);
    }

    /// Adds a file of that name to the gateway's configuration; before it is started.
    pub fn gateway_says(&self, name: &str, text: &str) {
        let folder = self.path("gateway/receiver.d");
        std::fs::create_dir_all(&folder).expect("mkdir");
        std::fs::write(folder.join(format!("{name}.toml")), text).expect("write");
    }

    /// Retention takes at once what it may; before the gateway is started.
    pub fn prune_at_once(&self) {
        self.gateway_says("retention", "[retention]\ninterval = \"200ms\"\n");
    }

    /// Hosts find the gateway at the end of a way; before anything is started.
    pub fn connect_by_a_way(&mut self) -> way::Way {
        let text = std::fs::read_to_string(self.path("gateway/receiver.toml")).expect("written above");
        let listen = text.split('"').nth(1).and_then(|listen| listen.parse().ok()).expect("its first value");
        let way = way::Way::to(listen);
        self.gateway_says("way", &format!("[receiver]\nadvertise = [\"{}\"]\n", way.address));
        way
    }

    /// Starts both and pairs them.
    pub fn start_all(&mut self) {
        self.start_receiver();
        self.start_daemon();
        self.pair();
    }

    /// A file below the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The backing file of a volume.
    pub fn backing(&self, volume: &str) -> PathBuf {
        self.path("host").join(format!("{volume}.img"))
    }

    /// The tap socket of a volume.
    pub fn tap(&self, volume: &str) -> PathBuf {
        self.path("host").join(format!("{volume}.nbd"))
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        self.path("gateway/store")
    }

    /// Starts the receiver and waits for its socket to answer.
    pub fn start_receiver(&mut self) {
        let child = self.spawn("farside-receiver", &["run", "--config"], "gateway/receiver.toml", "receiver.log");
        self.receiver = Some(Process { child, name: "farside-receiver" });
        let socket = self.path("gateway/api.sock");
        let process = self.receiver.as_mut().expect("just started");
        wait_for("the receiver's socket", || {
            assert!(process.is_running(), "the receiver ended: {}", tail(&self.dir.path().join("receiver.log")));
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
    }

    /// Starts the daemon and waits for nothing.
    pub fn spawn_daemon(&self) -> Process {
        Process { child: self.spawn("farsided", &["--config"], "host/farsided.toml", "daemon.log"), name: "farsided" }
    }

    /// Starts the daemon and waits until every tap takes connections and the status knows of every volume.
    pub fn start_daemon(&mut self) {
        self.daemon = Some(self.spawn_daemon());
        let sockets: Vec<PathBuf> = self.volumes.iter().map(|v| self.tap(&v.name)).chain([self.path("host/api.sock")]).collect();
        let process = self.daemon.as_mut().expect("just started");
        for socket in sockets {
            wait_for("the daemon's sockets", || {
                assert!(process.is_running(), "the daemon ended: {}", tail(&self.dir.path().join("daemon.log")));
                std::os::unix::net::UnixStream::connect(&socket).ok()
            });
        }
        wait_for("every volume to be served", || {
            let status = self.status();
            let volumes = status["groups"].as_array()?.iter().map(|g| g["volumes"].as_array().map_or(0, Vec::len)).sum::<usize>();
            (volumes >= self.volumes.len()).then_some(())
        });
    }

    fn spawn(&self, name: &str, args: &[&str], config: &str, log: &str) -> Child {
        let log = File::options().create(true).append(true).open(self.path(log)).expect("a log file");
        let mut command = match &self.namespaces {
            None => program(name),
            Some([host, gateway]) => {
                let namespace = if name == "farsided" { host } else { gateway };
                netns::inside(namespace, bin_dir().join(name))
            }
        };
        command
            .args(args)
            .arg(self.path(config))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("our own program starts")
    }

    /// A token from the receiver, given to the daemon.
    pub fn pair(&self) {
        let output = run(program("farside-receiver").args(["token", "--config"]).arg(self.path("gateway/receiver.toml")));
        let token = String::from_utf8(output.stdout).expect("text").trim().to_owned();
        run(self.farside().args(["pair", &token]));
    }

    /// `farside`, speaking to the daemon.
    pub fn farside(&self) -> Command {
        let mut command = program("farside");
        command.arg("--socket").arg(self.path("host/api.sock"));
        command
    }

    /// `farside`, speaking to the receiver.
    pub fn gateway(&self, arguments: &[&str]) -> Command {
        let mut command = program("farside");
        command.arg("--socket").arg(self.path("gateway/api.sock")).args(arguments);
        command
    }

    /// `farside status --json`.
    pub fn status(&self) -> Value {
        status_by(&mut self.farside())
    }

    /// The status of one volume.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn volume_status(&self, volume: &str) -> Value {
        let status = self.status();
        let groups = status["groups"].as_array().expect("groups").clone();
        let found = groups.iter().flat_map(|g| g["volumes"].as_array().expect("volumes")).find(|v| v["name"] == volume);
        found.unwrap_or_else(|| panic!("no volume {volume} in {status}")).clone()
    }

    /// Waits until a volume is in a state.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn wait_for_state(&self, volume: &str, state: &str) {
        wait_until(state, || {
            let volume = self.volume_status(volume);
            if volume["state"]["state"] == state { Ok(()) } else { Err(volume.to_string()) }
        });
    }

    /// Waits until every volume streams, nothing is dirty and everything is published.
    pub fn wait_quiet(&self) {
        wait_until("everything to be published", || is_quiet(self.status()));
    }

    /// The same for a sync that takes longer than [`PATIENCE`]: as long as the backlog shrinks.
    pub fn wait_quiet_while_it_shrinks(&self) {
        let backlog = || {
            let groups = self.status()["groups"].as_array().expect("groups").clone();
            groups.iter().map(|g| g["backlog_bytes"].as_u64().expect("a number")).sum::<u64>()
        };
        let mut least = u64::MAX;
        while least > 0 {
            least = wait_for("the backlog to shrink", || Some(backlog()).filter(|now| *now < least));
        }
        self.wait_quiet();
    }

    /// `farside point list VOLUME --store … --json`, oldest first.
    pub fn points(&self, of: &str) -> Vec<Value> {
        let output = self.farside_at_store(&["point", "list", of, "--json", "--store"]).output().expect("it starts");
        if output.status.code() == Some(NOTHING_THERE) {
            return Vec::new(); // no point of it yet
        }
        assert!(output.status.success(), "{output:?}");
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let mut points = value.as_array().cloned().or_else(|| value["points"].as_array().cloned()).expect("a list of points");
        points.sort_by_key(slot_of);
        points
    }

    /// Lets `write` write to a volume, waits until everything is published, and gives the newest point, which nobody had before.
    pub fn point_after(&self, volume: &str, write: impl FnOnce()) -> Value {
        let before = self.points(volume).last().map(slot_of);
        write();
        self.wait_quiet();
        wait_for("a newer point", || self.points(volume).pop().filter(|point| Some(slot_of(point)) > before))
    }

    /// The segments of a volume in the store: `<term>/<seq>.<part>`, in no order.
    pub fn segments(&self, volume: &str) -> Vec<PathBuf> {
        let group = &self.volumes.iter().find(|v| v.name == volume).expect("a volume of the site").group;
        let terms = self.store().join(format!("groups/host1/{group}/segments/{volume}"));
        // What goes meanwhile is not there.
        let entries =
            |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).collect::<Vec<_>>();
        entries(&terms).iter().flat_map(|term| entries(term)).collect()
    }

    /// The segment of a volume that holds most.
    pub fn largest_segment(&self, volume: &str) -> PathBuf {
        let bytes = |path: &PathBuf| path.metadata().map_or(0, |file| file.len());
        self.segments(volume).into_iter().max_by_key(bytes).expect("there are segments")
    }

    /// Restores a point of a volume from the store into a file.
    pub fn restore(&self, volume: &str, point: &str, to: &Path) {
        run(self.farside_at_store(&["restore", volume, "--point", point, "--store"]).arg("--to").arg(to));
    }

    /// Once everything is published: the volume holds what `client` was told, and so does its newest point, which is given.
    ///
    /// # Panics
    /// When one of them does not.
    pub fn check_newest(&self, volume: &str, client: &mut verify::Verifier) -> Vec<u8> {
        client.flush();
        self.wait_quiet();
        client.check_all();
        let to = self.path(&format!("{volume}-newest.img"));
        self.restore(volume, "latest", &to);
        let image = std::fs::read(&to).expect("restored");
        client.compare_image(&image, "the newest point");
        std::fs::remove_file(to).expect("restored");
        image
    }

    /// `farside store check`, which must find nothing.
    pub fn check_store(&self) {
        run(&mut self.farside_at_store(&["store", "check"]));
    }
}

/// The ledger slot of a listed point.
pub fn slot_of(point: &Value) -> u64 {
    let id = point["id"].as_str().expect("a point has an id");
    id.split('-').next().expect("an id has a slot").parse().expect("a number")
}

/// The end of a log, for a failure's message.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
