//! A real file system on the tap without a kernel NBD client: nbdfuse shows the volume as a file, a loop device makes a disk
//! of it, and the kernel mounts that. Needs root and FUSE.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use crate::{run, tool, wait_for};

/// Whether this process may do all that.
pub fn possible() -> bool {
    nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists()
}

/// A mounted file system; taken down in order when dropped.
#[derive(Debug)]
pub struct Mounted {
    fuse_dir: PathBuf,
    fuse: Option<Child>,
    loop_device: Option<String>,
    mountpoint: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// Mounts the ext4 file system that lies on a tap. `scratch` is a folder for the mount points.
    ///
    /// # Panics
    /// When a step fails; what was done is undone.
    pub fn on_tap(tap: &Path, scratch: &Path) -> Self {
        let fuse_dir = scratch.join("fuse");
        let mountpoint = scratch.join("mnt");
        std::fs::create_dir_all(&fuse_dir).expect("mkdir");
        std::fs::create_dir_all(&mountpoint).expect("mkdir");
        let mut this = Self { fuse_dir: fuse_dir.clone(), fuse: None, loop_device: None, mountpoint, mounted: false };
        let disk = fuse_dir.join("disk");
        let child = tool("nbdfuse").arg(&disk).arg("--unix").arg(tap).stdin(Stdio::null()).spawn().expect("nbdfuse is installed");
        this.fuse = Some(child);
        wait_for("nbdfuse", || disk.metadata().ok().filter(|m| m.len() > 0));
        let output = run(tool("losetup").args(["--find", "--show"]).arg(&disk));
        let device = String::from_utf8(output.stdout).expect("text").trim().to_owned();
        this.loop_device = Some(device.clone());
        run(tool("mount").args(["-t", "ext4"]).arg(&device).arg(&this.mountpoint));
        this.mounted = true;
        this
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.mounted {
            let _ = tool("umount").arg(&self.mountpoint).status();
        }
        if let Some(device) = &self.loop_device {
            let _ = tool("losetup").args(["--detach", device]).status();
        }
        let _ = tool("fusermount3").args(["-u", "-q"]).arg(self.fuse_dir.join("disk")).status();
        let _ = tool("fusermount3").args(["-u", "-q"]).arg(&self.fuse_dir).status();
        if let Some(mut child) = self.fuse.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Replays the journal of a copy of an ext4 image and checks it, by exit status.
///
/// # Panics
/// When it is not clean.
pub fn fsck_clean(image: &Path) {
    // The replay itself says 1 ("errors corrected") or 0; the check after it must find nothing.
    let replay = tool("e2fsck").args(["-y", "-E", "journal_only"]).arg(image).stdin(Stdio::null()).output().expect("e2fsck");
    assert!(matches!(replay.status.code(), Some(0 | 1)), "journal replay: {replay:?}");
    run(tool("e2fsck").args(["-f", "-n"]).arg(image));
}

/// A file system image mounted read-only through a loop device.
#[derive(Debug)]
pub struct Image {
    mountpoint: PathBuf,
}

impl Image {
    /// Mounts it.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(image: &Path, mountpoint: &Path) -> Self {
        std::fs::create_dir_all(mountpoint).expect("mkdir");
        run(tool("mount").args(["-t", "ext4", "-o", "loop,ro"]).arg(image).arg(mountpoint));
        Self { mountpoint: mountpoint.to_owned() }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = tool("umount").arg(&self.mountpoint).status();
    }
}
