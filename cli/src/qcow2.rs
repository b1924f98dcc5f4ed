//! A restore into a qcow2 image, which `qemu-img` makes: the point is served to it over NBD on a socket of its own, so that
//! nothing else is written first.
//!
//! Invariant: the image has its name only when it is complete and durable; whatever ends an attempt early leaves nothing that could be
//! taken for it. One granule that cannot be read ends it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use farside_blockio::Waker;
use farside_nbd::{Handle, Limits, Listener, Server, SocketOptions};
use farside_region::{Geometry, GranuleRun, RegionIndex};
use farside_store::{
    Content, FileTarget, PointReader, RestoreOptions, RestoreReport, RestoreTarget as _, StoreError, check_restorable,
};
use farside_view::{Base, Region, View, ViewQueue};

use crate::failure::{Exit, Failure, OrFail as _};
use crate::restore::Options;

/// Regions in memory.
const CACHE_BYTES: u64 = 64 << 20;
/// Requests that qemu-img has under way, of 2 MiB each; at most 16.
const REQUESTS: &str = "16";
/// How often it is looked whether somebody wants it to end.
const LOOK: Duration = Duration::from_millis(200);
/// Of what qemu-img says about an error so much is repeated.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// Restores a point. `progress` hears bytes done and in all; false from it ends the restore.
pub(crate) fn write_out(
    point: &Arc<PointReader>,
    volume: &str,
    to: &Path,
    options: &Options,
    progress: &(dyn Fn(u64, u64) -> bool + Sync),
) -> Result<RestoreReport, Failure> {
    let settings = RestoreOptions {
        allow_degraded: options.allow_degraded,
        allow_damaged: options.allow_damaged,
        ..RestoreOptions::default()
    };
    check_restorable(point, &settings)?;
    if std::fs::metadata(to).is_ok_and(|meta| meta.file_type().is_block_device()) {
        let message = format!("{} is a block device, and a qcow2 image is a file", to.display());
        return Err(Failure::new(Exit::Refused, message, "leave out --format to have the volume itself there, or name a file"));
    }
    let target = FileTarget::open(to, volume, 0, options.existing)?;
    let partial = target.partial().expect("a file that is not gone on with grows under another name").to_owned();
    let lost = Arc::new(Mutex::new(BTreeMap::new()));
    let base = Served { point: point.clone(), options: options.clone(), lost: lost.clone() };
    let total = point.geometry().volume_bytes();
    let server = Serving::start(base, volume, settings.threads)?;
    let converted = convert(&server.uri(volume), &partial, total, progress);
    let failure = server.end();
    if let Err(why) = converted {
        return Err(failure.unwrap_or(why));
    }
    target.sync().or_fail(partial.display())?;
    target.finish()?;
    let mut report = RestoreReport::default();
    for extent in point.extents(point.geometry().whole()) {
        let bytes = point.geometry().bytes_of(extent.run).len;
        match extent.content {
            Content::Data => report.data_bytes += bytes,
            Content::Zero => report.zero_bytes += bytes,
            Content::Unreadable => report.unreadable_bytes += bytes,
        }
    }
    let lost = std::mem::take(&mut *lost.lock().expect("nothing panics while it holds this lock"));
    report.damaged = lost.into_values().flatten().map(|run: GranuleRun| point.geometry().bytes_of(run)).collect();
    Ok(report)
}

/// How a restore into a qcow2 image may be asked for.
pub(crate) fn refuse(to: &Path, resume: bool) -> Result<(), Failure> {
    let usage = |message: &str, what_to_do: &str| Err(Failure::new(Exit::Usage, message, what_to_do));
    if to.as_os_str() == "-" {
        return usage("a qcow2 image is not written from its first byte to its last", "name a file: --to FILE.qcow2");
    }
    if resume {
        let what_to_do = "leave out --resume; what an attempt that was killed has left is taken away by the next one";
        return usage("a qcow2 image is always made anew", what_to_do);
    }
    Ok(())
}

/// What qemu-img reads: the point, with zeroes for what may be missing.
struct Served {
    point: Arc<PointReader>,
    options: Options,
    /// By region, since one may be read twice.
    lost: Arc<Mutex<BTreeMap<RegionIndex, Vec<GranuleRun>>>>,
}

impl Base for Served {
    fn geometry(&self) -> &Geometry {
        self.point.geometry()
    }

    fn is_zero(&self, region: RegionIndex) -> bool {
        self.point.is_zero(region)
    }

    fn read(&self, region: RegionIndex) -> Result<Region, StoreError> {
        let mut content = Base::read(&*self.point, region)?;
        if self.options.allow_degraded {
            content.unreadable.clear();
        }
        if self.options.allow_damaged
            && let Some(lost) = content.lost.take()
        {
            self.lost.lock().expect("nothing panics while it holds this lock").insert(region, lost.runs);
        }
        Ok(content)
    }
}

/// A point on a socket that nobody else can reach.
struct Serving {
    folder: tempfile::TempDir,
    handle: Handle,
    thread: JoinHandle<()>,
    /// Why something could not be read, first.
    failed: Arc<Mutex<Option<Failure>>>,
}

impl Serving {
    fn start(base: Served, volume: &str, threads: usize) -> Result<Self, Failure> {
        let failed = Arc::new(Mutex::new(None));
        let first = failed.clone();
        let tell = move |error: &StoreError| {
            let (exit, what_to_do) = match error {
                StoreError::Corrupt { .. } | StoreError::Incomplete { .. } => (
                    Exit::Damaged,
                    "take another point, or say --allow-damaged to have zeroes where the store has lost something",
                ),
                StoreError::PointDeleted { .. } => (Exit::Refused, ""),
                _ => (Exit::Failed, ""),
            };
            let mut first = first.lock().expect("nothing panics while it holds this lock");
            first.get_or_insert_with(|| Failure::from_error(exit, error, what_to_do));
        };
        let view = Arc::new(View::new(base, None, CACHE_BYTES, Box::new(tell)));
        let folder = tempfile::Builder::new().prefix("farside-").tempdir().or_fail("no folder for a socket")?;
        let waker = Waker::new().or_fail("cannot start")?;
        let queue = ViewQueue::new(view, threads, &waker).or_fail("no threads to serve it with")?;
        let listener = Listener::bind(&SocketOptions { path: socket_in(folder.path()), group: None });
        let listener = listener.map_err(|error| Failure::from_error(Exit::Failed, &error, "set TMPDIR to another folder"))?;
        let (server, handle) = Server::new(listener, volume, volume, Limits::default(), waker);
        let serve = move || {
            // Whoever reads sees its end.
            let _ = server.run(queue);
        };
        let thread = std::thread::Builder::new().name("qcow2".into()).spawn(serve).or_fail("cannot start")?;
        Ok(Self { folder, handle, thread, failed })
    }

    fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{}?socket={}", escaped(volume), escaped(&socket_in(self.folder.path()).to_string_lossy()))
    }

    /// Says what could not be read, if that was so.
    fn end(self) -> Option<Failure> {
        self.handle.stop();
        let _ = self.thread.join();
        self.failed.lock().expect("nothing panics while it holds this lock").take()
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("nbd")
}

/// As a part of an address.
fn escaped(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'.' | b'_');
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Has qemu-img make an image of what it reads there.
fn convert(from: &str, to: &Path, total: u64, progress: &(dyn Fn(u64, u64) -> bool + Sync)) -> Result<(), Failure> {
    // With a slash in front nothing in it is taken for a protocol.
    let to = std::path::absolute(to).or_fail(to.display())?;
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-p", "-m", REQUESTS, "-f", "raw", "-O", "qcow2", from]).arg(&to);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Running(spawned.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let what_to_do = "install it (Debian and Ubuntu: apt-get install qemu-utils), or restore a raw image: --to FILE.img";
            Failure::new(Exit::Refused, "qemu-img makes qcow2 images, and is not installed", what_to_do)
        }
        _ => Failure::new(Exit::Failed, format!("qemu-img cannot be started: {error}"), ""),
    })?);
    let (says, heard) = channel();
    let output = child.0.stdout.take().expect("piped");
    let reading = std::thread::spawn(move || {
        let pieces = BufReader::new(output).split(b'\r').map_while(Result::ok);
        for percent in pieces.filter_map(|piece| percent(&piece)) {
            let _ = says.send(percent); // after an interruption nobody hears it, and it is read to its end
        }
    });
    let mut errors = child.0.stderr.take().expect("piped");
    let complaint = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = Read::by_ref(&mut errors).take(COMPLAINT_BYTES_MAX).read_to_end(&mut text);
        let _ = std::io::copy(&mut errors, &mut std::io::sink());
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let mut done = 0;
    loop {
        match heard.recv_timeout(LOOK) {
            Ok(percent) => done = ((total as f64) * percent / 100.0) as u64,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if !progress(done.min(total), total) {
            return Err(StoreError::Stopped.into());
        }
    }
    let status = child.0.wait().or_fail("qemu-img")?;
    let (_, complaint) = (reading.join(), complaint.join().unwrap_or_default());
    if status.success() {
        progress(total, total);
        return Ok(());
    }
    let said = complaint.lines().last().unwrap_or_default();
    Err(Failure::new(Exit::Failed, format!("qemu-img made no image ({status}): {said}"), "nothing of it was kept"))
}

/// Does not outlive who waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // nothing, if it was waited for
        let _ = self.0.wait();
    }
}

/// Of `    (12.34/100%)`.
fn percent(piece: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(piece).ok()?;
    text.trim().strip_prefix('(')?.split_once('/')?.0.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_img_says_of_its_progress_is_understood() {
        assert_eq!(percent(b"    (12.34/100%)"), Some(12.34));
        assert_eq!(percent(b"    (100.00/100%)"), Some(100.0));
        for other in [&b""[..], b"\n", b"qemu-img: (1/2", b"(x/100%)", b"(101/100%)", b"(-1/100%)"] {
            assert_eq!(percent(other), None, "{other:?}");
        }
    }

    #[test]
    fn any_folder_can_be_named_in_an_address() {
        assert_eq!(escaped("/tmp/a b&c?/é/nbd"), "/tmp/a%20b%26c%3F/%C3%A9/nbd");
    }
}
