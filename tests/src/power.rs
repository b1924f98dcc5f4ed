//! A disk that forgets, as a block device of this machine: [`forgetful`](crate::forgetful) behind nbdfuse and a loop
//! device, so real programs and file systems use it through the kernel. Needs root, FUSE and loop devices.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::forgetful::{Flush, Platter};
use crate::verify::Rng;
use crate::{run, tool, wait_for};

const SECTOR: u32 = 512;

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
    platter: Platter,
    socket: PathBuf,
    fuse_dir: PathBuf,
    fuse: Option<Child>,
    /// The same one after every power cut: it is the disk's name.
    loop_device: PathBuf,
}

impl Disk {
    /// A disk with this content, switched on. `scratch` is a folder for its socket.
    ///
    /// # Panics
    /// When a step fails.
    pub fn new(scratch: &Path, content: Vec<u8>) -> Self {
        std::fs::create_dir_all(scratch.join("fuse")).expect("mkdir");
        let socket = scratch.join("disk.nbd");
        let platter = Platter::serve(&socket, content, SECTOR, Flush::Honest);
        let fuse_dir = scratch.join("fuse");
        let mut this = Self { platter, socket, fuse_dir, fuse: None, loop_device: unused_loop_device() };
        this.switch_on();
        this
    }

    /// Gives it power.
    ///
    /// # Panics
    /// When it has some, or a step fails.
    pub fn switch_on(&mut self) {
        self.platter.switch_on();
        let file = self.fuse_dir.join("disk");
        let child = tool("nbdfuse").arg(&file).arg("--unix").arg(&self.socket).stdin(Stdio::null()).spawn().expect("nbdfuse");
        self.fuse = Some(child);
        wait_for("nbdfuse", || file.metadata().ok().filter(|m| m.len() > 0));
        run(tool("losetup").arg(&self.loop_device).arg(&file));
    }

    /// The power goes: nothing more is read or written. Returns how many blocks were lost.
    pub fn cut(&self, rng: &mut Rng, kept: u64) -> usize {
        self.platter.cut(rng, kept)
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
        self.platter.content()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unplug();
    }
}

/// An empty ext4, as the bytes of a disk. `scratch` is a folder with room for it.
///
/// # Panics
/// When it cannot be made.
pub fn formatted(scratch: &Path, bytes: u64) -> Vec<u8> {
    std::fs::create_dir_all(scratch).expect("mkdir");
    let image = scratch.join("image");
    File::create(&image).and_then(|f| f.set_len(bytes)).expect("a sparse file");
    run(tool("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(&image));
    let content = std::fs::read(&image).expect("an image");
    std::fs::remove_file(image).expect("our own");
    content
}
