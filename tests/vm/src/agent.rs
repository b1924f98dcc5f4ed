//! The agent: what the harness speaks with inside a guest.
//!
//! It runs one request after the other and sends the kernel's log as it comes, so that the harness has it also after the
//! power went. It is started by the guest's `/init`, which stays process 1 and ends the guest when the agent ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use farside_vm::protocol::{AGENT_PORT, LOG_PORT, Reply, Request, receive, send};

const PORT_POLL: Duration = Duration::from_millis(5);
/// A daemon that is asked is busy, or hangs.
const API_PATIENCE: Duration = Duration::from_secs(5);
const SHELL: &str = "/bin/sh";
/// What a record of the kernel's log is cut to by the kernel.
const RECORD_MAX: usize = 8192;

fn main() -> io::Result<()> {
    let log = open_port(LOG_PORT)?;
    std::thread::spawn(move || forward_log(log));
    let mut port = open_port(AGENT_PORT)?;
    send(&mut port, &Reply::Ready, &[])?;
    loop {
        let (request, payload): (Request, Vec<u8>) = receive(&mut port)?;
        let (reply, payload) =
            carry_out(request, &payload).unwrap_or_else(|error| (Reply::Failed { why: error.to_string() }, Vec::new()));
        send(&mut port, &reply, &payload)?;
    }
}

/// The virtio-serial port of this name, as soon as its device has said what its ports are called.
fn open_port(name: &str) -> io::Result<File> {
    loop {
        for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
            let entry = entry?;
            if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name) {
                return File::options().read(true).write(true).open(PathBuf::from("/dev").join(entry.file_name()));
            }
        }
        std::thread::park_timeout(PORT_POLL); // the harness waits, and not for ever
    }
}

/// Until the guest ends. A read gives one whole record, and `EPIPE` where some were overwritten before they were read.
fn forward_log(mut to: File) -> io::Result<()> {
    let mut from = File::open("/dev/kmsg")?;
    let mut record = vec![0; RECORD_MAX + 1];
    loop {
        match from.read(&mut record[..RECORD_MAX]) {
            Ok(len) => {
                record[len] = 0;
                to.write_all(&record[..=len])?;
            }
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                to.write_all(b"3,0,0,-;the harness lost records of this log\0")?;
            }
            Err(error) => return Err(error),
        }
    }
}

fn carry_out(request: Request, payload: &[u8]) -> io::Result<(Reply, Vec<u8>)> {
    match request {
        Request::Run { command } => {
            let output = Command::new(SHELL).args(["-c", &command]).stdin(Stdio::null()).output()?;
            let code = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
            let stdout = output.stdout.len() as u64;
            Ok((Reply::Ran { code, stdout }, [output.stdout, output.stderr].concat()))
        }
        Request::Start { command, log } => {
            let log = File::options().create(true).append(true).open(log)?;
            let mut shell = Command::new(SHELL);
            shell.args(["-c", &command]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            let mut child = shell.spawn()?;
            let pid = child.id();
            std::thread::spawn(move || child.wait());
            Ok((Reply::Started { pid }, Vec::new()))
        }
        Request::Write { path, mode } => {
            let parent = Path::new(&path).parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(parent)?;
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&path)?;
            file.write_all(payload)?;
            Ok((Reply::Written, Vec::new()))
        }
        Request::Read { path } => match std::fs::read(path) {
            Ok(content) => Ok((Reply::Content, content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Reply::Nothing, Vec::new())),
            // A process that ended after its file in /proc was opened.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Ok((Reply::Nothing, Vec::new())),
            Err(error) => Err(error),
        },
        Request::Get { socket, path } => Ok(match get(&socket, &path) {
            Ok(body) => (Reply::Content, body),
            Err(_) => (Reply::Nothing, Vec::new()),
        }),
    }
}

/// The body of a successful answer.
fn get(socket: &str, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(API_PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")?; // 1.0: whole, and then closed
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    if answer.split(|byte| *byte == b' ').nth(1) != Some(b"200") {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(answer.split_off(head + 4))
}
