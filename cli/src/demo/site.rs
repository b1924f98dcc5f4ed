//! A protected host and its gateway in one temporary directory: two processes of this very program.
//!
//! Invariant: whatever it started has ended, and whatever it made is gone, when a [`Site`] is dropped (unless `--keep`).

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use farside_control::Client;
use farside_control::client::Daemon;
use farside_control::receiver::TokenRequest;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::failure::{Exit, Failure, OrFail as _};

/// The names that the demo's volume goes by.
pub(crate) const SOURCE: &str = "demo-host";
/// The volume.
pub(crate) const VOLUME: &str = "data";

/// How long anything may take to happen before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);

const EPOCH: &str = "250ms";
const KEEP: u32 = 400;

/// The temporary directory and what runs in it.
#[derive(Debug)]
pub(crate) struct Site {
    dir: Option<TempDir>,
    path: PathBuf,
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    source: Option<Child>,
    receiver: Option<Child>,
}

impl Site {
    /// Makes the directory and its configuration files.
    pub(crate) fn new(keep: bool) -> Result<Self, Failure> {
        let mut dir = find_room()?;
        dir.disable_cleanup(keep);
        let path = dir.path().to_owned();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().or_fail("cannot start")?;
        let stop = Arc::new(AtomicBool::new(false));
        let interrupted = stop.clone();
        runtime.spawn(async move {
            let asked_to_end = async {
                use tokio::signal::unix::{SignalKind, signal};
                signal(SignalKind::terminate()).expect("a runtime with signals").recv().await
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = asked_to_end => {}
            }
            interrupted.store(true, Ordering::Relaxed);
        });
        let site = Self { dir: Some(dir), path, runtime, stop, source: None, receiver: None };
        site.write_configuration()?;
        Ok(site)
    }

    fn write_configuration(&self) -> Result<(), Failure> {
        let port =
            std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).or_fail("no free port")?.port();
        let at = |name: &str| self.path(name).display().to_string();
        let receiver = format!(
            "[receiver]\nlisten = \"127.0.0.1:{port}\"\nstore = \"{}\"\nstate_dir = \"{}\"\napi_socket = \"{}\"\n",
            at("gateway/store"),
            at("gateway/state"),
            at("gateway/api.sock"),
        );
        let source = format!(
            "[source]\nname = \"{SOURCE}\"\nstate_dir = \"{}\"\napi_socket = \"{}\"\n\n\
             [[group]]\nname = \"default\"\nepoch_interval = \"{EPOCH}\"\nkeep = {KEEP}\nspan = \"0s\"\n\n\
             [[volume]]\nname = \"{VOLUME}\"\nbacking = \"{}\"\ntap = \"nbd:unix:{}\"\n",
            at("host/state"),
            at("host/api.sock"),
            self.backing().display(),
            self.tap().display(),
        );
        for (name, text) in [("gateway/receiver.toml", receiver), ("host/farsided.toml", source)] {
            let path = self.path(name);
            std::fs::create_dir_all(path.parent().expect("it has a folder")).or_fail("cannot make a folder")?;
            std::fs::write(&path, text).or_fail(format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// A file below the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The volume's backing file.
    pub(crate) fn backing(&self) -> PathBuf {
        self.path("host/data.img")
    }

    /// The socket on which the volume is served.
    pub(crate) fn tap(&self) -> PathBuf {
        self.path("host/data.nbd")
    }

    /// The store.
    pub(crate) fn store(&self) -> PathBuf {
        self.path("gateway/store")
    }

    /// The API of the host.
    pub(crate) fn host(&self) -> Client {
        Client::new(Daemon::Source, self.path("host/api.sock")).with_timeout(Duration::from_secs(10))
    }

    /// The API of the gateway.
    pub(crate) fn gateway(&self) -> Client {
        Client::new(Daemon::Receiver, self.path("gateway/api.sock")).with_timeout(Duration::from_secs(10))
    }

    /// Waits for an answer.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Set when the person wants it to end.
    pub(crate) fn check_interrupt(&self) -> Result<(), Failure> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Failure::new(Exit::Failed, "interrupted; everything was cleaned up", ""));
        }
        Ok(())
    }

    /// Asks again and again until there is something, or patience ends.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Self) -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check_interrupt()?;
            self.check_children()?;
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let logs = [self.log_tail("host.log"), self.log_tail("gateway.log")].join("\n");
                return Err(Failure::new(Exit::Failed, format!("waited {} s for {what}\n{logs}", PATIENCE.as_secs()), ""));
            }
            self.pause(Duration::from_millis(50));
        }
    }

    /// Lets time pass.
    pub(crate) fn pause(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Starts both processes and pairs them.
    pub(crate) fn start(&mut self) -> Result<(), Failure> {
        self.receiver = Some(self.spawn("receiver", "gateway/receiver.toml", "gateway.log")?);
        self.wait_for("the receiver to answer", |site| Ok(site.block_on(site.gateway().receiver_status()).ok()))?;
        self.source = Some(self.spawn("daemon", "host/farsided.toml", "host.log")?);
        self.wait_for("the daemon to answer", |site| Ok(site.block_on(site.host().source_status()).ok()))?;
        let request = TokenRequest { source: Some(SOURCE.to_owned()), ..TokenRequest::default() };
        let token = self.block_on(self.gateway().token_create(&request))?;
        self.block_on(self.host().pair(&token.token))?;
        Ok(())
    }

    fn spawn(&self, role: &str, config: &str, log: &str) -> Result<Child, Failure> {
        let this = std::env::current_exe().or_fail("this program cannot be found")?;
        let log = File::create(self.path(log)).or_fail("cannot write a log")?;
        // The child ends when its standard input does: should this process be killed, it goes too. Its own process group
        // keeps a Ctrl-C for us, who clean up in order.
        Command::new(this)
            .args([role, "--until-stdin-ends", "--config"])
            .arg(self.path(config))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().or_fail("cannot write a log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .or_fail(format!("the {role} does not start"))
    }

    /// Both must live, until one of them is killed on purpose.
    pub(crate) fn check_children(&mut self) -> Result<(), Failure> {
        let ended = |child: &mut Option<Child>| {
            let status = child.as_mut()?.try_wait().ok()??;
            *child = None;
            Some(status)
        };
        let (source, receiver) = (ended(&mut self.source), ended(&mut self.receiver));
        for (status, role, log) in [(source, "daemon", "host.log"), (receiver, "receiver", "gateway.log")] {
            if let Some(status) = status {
                let message = format!("the {role} ended ({status}). The end of its log:\n{}", self.log_tail(log));
                return Err(Failure::new(Exit::Failed, message, "run it again with --keep to have the whole log"));
            }
        }
        Ok(())
    }

    fn log_tail(&self, log: &str) -> String {
        let text = std::fs::read_to_string(self.path(log)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// The daemon dies as in a power cut of its host: at once, whatever it was doing.
    pub(crate) fn kill_source(&mut self) {
        if let Some(mut child) = self.source.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// What a process used so far: CPU seconds and its highest resident memory.
    pub(crate) fn usage(&self) -> [Option<Usage>; 2] {
        [&self.source, &self.receiver].map(|child| child.as_ref().and_then(|child| Usage::of(child.id())))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill_source();
        if let Some(mut child) = self.receiver.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        drop(self.dir.take());
    }
}

/// What a process used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu_ms: u64,
    /// The highest resident memory.
    pub(crate) rss_bytes_max: u64,
}

impl Usage {
    fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let kib: u64 = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Fields after the program's name, which may contain anything but ends at the last parenthesis.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Self { cpu_ms: ticks * 10, rss_bytes_max: kib << 10 })
    }
}

/// A temporary directory on a file system that can do O_DIRECT, which the product insists on.
fn find_room() -> Result<TempDir, Failure> {
    let places = [std::env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from(".")];
    let mut why = String::new();
    for place in &places {
        match probe(place) {
            Ok(dir) => return Ok(dir),
            Err(error) => why.push_str(&format!("\n  {}: {error}", place.display())),
        }
    }
    let message = format!("there is no place for the demo: it needs O_DIRECT and about 1 GiB free{why}");
    Err(Failure::new(Exit::Failed, message, "set TMPDIR to a directory on a disk"))
}

fn probe(place: &Path) -> std::io::Result<TempDir> {
    let place = std::fs::canonicalize(place)?;
    let dir = tempfile::Builder::new().prefix("farside-demo-").tempdir_in(place)?;
    let probe = dir.path().join("probe");
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).custom_flags(libc::O_DIRECT).open(&probe)?;
    std::fs::remove_file(&probe)?;
    let room = nix::sys::statvfs::statvfs(dir.path())?;
    if room.blocks_available() * room.fragment_size() < 1 << 30 {
        return Err(std::io::Error::other("less than 1 GiB free"));
    }
    // A Unix socket's path may have 107 bytes.
    if dir.path().as_os_str().len() > 80 {
        return Err(std::io::Error::other("the path is too long for a socket in it"));
    }
    Ok(dir)
}
