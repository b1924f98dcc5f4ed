//! A disk that forgets: what was not flushed when the power goes may be there afterwards or not, block by block.
//!
//! It lives in memory behind an NBD server of this process; nbdfuse and a loop device make a block device of it, so real
//! programs and file systems use it through the kernel. Needs root, FUSE and loop devices.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use farside_blockio::{BlockQueue, Buffer, Completion, Done, Errno, Op, QueueInfo, Request, Ring, Waker};
use farside_nbd::{Handle, Limits, Listener, ServeError, Server, SocketOptions};

use crate::verify::Rng;
use crate::{run, tool, wait_for};

const SECTOR: u32 = 512;
/// What becomes durable or is lost as one.
const BLOCK: usize = 4096;

/// What survives, what is seen, and what lies between.
#[derive(Debug)]
struct Platter {
    durable: Vec<u8>,
    seen: Vec<u8>,
    /// Writes since the last flush, in order: where, and what.
    unsynced: Vec<(usize, Vec<u8>)>,
    off: bool,
}

impl Platter {
    fn run(&mut self, request: &mut Request) -> Result<(), Errno> {
        if self.off {
            return Err(Errno::EIO);
        }
        let at = request.extent.offset.0 as usize;
        let len = request.extent.len as usize;
        match (request.op, request.buffer.as_mut()) {
            (Op::Read, Some(buffer)) => buffer.copy_from_slice(&self.seen[at..at + len]),
            (Op::Write, Some(buffer)) => self.write(at, buffer.to_vec()),
            (Op::Trim | Op::WriteZeroes { .. }, _) => self.write(at, vec![0; len]),
            (Op::Flush, _) => self.flush(),
            (Op::Read | Op::Write, None) => unreachable!("the server gives reads and writes a buffer"),
        }
        if request.fua {
            self.flush();
        }
        Ok(())
    }

    fn write(&mut self, at: usize, content: Vec<u8>) {
        self.seen[at..at + content.len()].copy_from_slice(&content);
        self.unsynced.push((at, content));
    }

    fn flush(&mut self) {
        for (at, content) in self.unsynced.drain(..) {
            self.durable[at..at + content.len()].copy_from_slice(&content);
        }
    }

    /// Of what was not flushed, each block stays with `kept` chances in eight. Returns how many were lost.
    fn cut(&mut self, rng: &mut Rng, kept: u64) -> usize {
        let mut lost = 0;
        for (at, content) in self.unsynced.drain(..) {
            for (i, block) in content.chunks(BLOCK).enumerate() {
                if rng.below(8) < kept {
                    self.durable[at + i * BLOCK..][..block.len()].copy_from_slice(block);
                } else {
                    lost += 1;
                }
            }
        }
        self.seen.copy_from_slice(&self.durable);
        self.off = true;
        lost
    }
}

/// Its queue.
#[derive(Debug)]
struct Forgetful {
    platter: Arc<Mutex<Platter>>,
    done: VecDeque<Done>,
}

fn lock(platter: &Mutex<Platter>) -> MutexGuard<'_, Platter> {
    platter.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockQueue for Forgetful {
    fn info(&self) -> QueueInfo {
        let size = lock(&self.platter).seen.len() as u64;
        QueueInfo { size, block_min: SECTOR, block_preferred: BLOCK as u32, readonly: false, zeroes_fast: false }
    }

    fn submit(&mut self, _ring: &mut Ring, mut request: Request) {
        let result = lock(&self.platter).run(&mut request);
        let Request { id, buffer, .. } = request;
        let buffer: Option<Buffer> = buffer;
        self.done.push_back(Done { id, result, buffer });
    }

    fn complete(&mut self, _ring: &mut Ring, _completion: Completion) {
        unreachable!("a disk in memory starts no operations");
    }

    fn wake(&mut self, _ring: &mut Ring) {}

    fn reap(&mut self) -> Option<Done> {
        self.done.pop_front()
    }
}

/// A loop device that nobody has, far above those that are given to whoever asks for any: the disk needs the same one after
/// every power cut.
fn unused_loop_device() -> PathBuf {
    let mut all = (1000..2000).map(|number| PathBuf::from(format!("/dev/loop{number}")));
    all.find(|device| !is_in_use(device)).expect("a free loop device")
}

fn is_in_use(device: &Path) -> bool {
    let mut losetup = tool("losetup");
    losetup.arg(device).stdout(Stdio::null()).stderr(Stdio::null());
    losetup.status().expect("losetup is installed").success()
}

/// The disk, while it has power, as a block device.
#[derive(Debug)]
pub struct Disk {
    platter: Arc<Mutex<Platter>>,
    socket: PathBuf,
    fuse_dir: PathBuf,
    fuse: Option<Child>,
    /// The same one after every power cut: it is the disk's name.
    loop_device: PathBuf,
    stop: Handle,
    server: Option<JoinHandle<Result<Forgetful, ServeError>>>,
}

impl Disk {
    /// A disk with this content, switched on. `scratch` is a folder for its socket.
    ///
    /// # Panics
    /// When a step fails.
    pub fn new(scratch: &Path, content: Vec<u8>) -> Self {
        std::fs::create_dir_all(scratch.join("fuse")).expect("mkdir");
        let platter = Platter { seen: content.clone(), durable: content, unsynced: Vec::new(), off: true };
        let platter = Arc::new(Mutex::new(platter));
        let socket = scratch.join("disk.nbd");
        let listener = Listener::bind(&SocketOptions { path: socket.clone(), group: None }).expect("a socket");
        let waker = Waker::new().expect("a waker");
        let (server, stop) = Server::new(listener, "disk", "", Limits::default(), waker);
        let queue = Forgetful { platter: platter.clone(), done: VecDeque::new() };
        let server = std::thread::spawn(move || server.run(queue));
        let fuse_dir = scratch.join("fuse");
        let mut this =
            Self { platter, socket, fuse_dir, fuse: None, loop_device: unused_loop_device(), stop, server: Some(server) };
        this.switch_on();
        this
    }

    /// Gives it power.
    ///
    /// # Panics
    /// When it has some, or a step fails.
    pub fn switch_on(&mut self) {
        assert!(std::mem::replace(&mut lock(&self.platter).off, false), "it is on");
        let file = self.fuse_dir.join("disk");
        let child = tool("nbdfuse").arg(&file).arg("--unix").arg(&self.socket).stdin(Stdio::null()).spawn().expect("nbdfuse");
        self.fuse = Some(child);
        wait_for("nbdfuse", || file.metadata().ok().filter(|m| m.len() > 0));
        run(tool("losetup").arg(&self.loop_device).arg(&file));
    }

    /// The power goes: nothing more is read or written. Returns how many blocks were lost.
    pub fn cut(&self, rng: &mut Rng, kept: u64) -> usize {
        lock(&self.platter).cut(rng, kept)
    }

    /// Takes away what the kernel still has of it; whoever mounted it has unmounted it.
    ///
    /// # Panics
    /// When the kernel does not let go of it.
    pub fn unplug(&mut self) {
        if let Some(mut child) = self.fuse.take() {
            let _ = tool("losetup").arg("--detach").arg(&self.loop_device).status();
            wait_for("the loop device to be let go", || (!is_in_use(&self.loop_device)).then_some(()));
            let _ = tool("fusermount3").args(["-u", "-q", "-z"]).arg(self.fuse_dir.join("disk")).status();
            let _ = tool("fusermount3").args(["-u", "-q", "-z"]).arg(&self.fuse_dir).stderr(Stdio::null()).status();
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The block device.
    pub fn device(&self) -> &Path {
        &self.loop_device
    }

    /// What a reader would see.
    pub fn content(&self) -> Vec<u8> {
        lock(&self.platter).seen.clone()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unplug();
        self.stop.stop();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}
