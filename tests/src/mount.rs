//! A real file system on the tap without a kernel NBD client: nbdfuse shows the volume as a file, a loop device makes a disk
//! of it, and the kernel mounts that. Needs root and FUSE.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{Site, run, tool, wait_for};

/// A file system in memory with little room, which is seen by the thread that mounted it and its children only.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one on a folder that is there. `size`: as `mount -o size=` has it. `None`, and says so: it cannot be, without root.
    pub fn mount(folder: &Path, size: &str) -> Option<Self> {
        let disk = Self(folder.to_owned());
        let private = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>))
            .and_then(|()| disk.mounted(MsFlags::empty(), size));
        match private {
            Ok(()) => Some(disk),
            Err(error) => {
                eprintln!("skipped: a private tmpfs cannot be mounted here ({error}); run as root");
                None
            }
        }
    }

    /// Gives it another size.
    ///
    /// # Panics
    /// When what is in it does not fit.
    pub fn resize(&self, size: &str) {
        self.mounted(MsFlags::MS_REMOUNT, size).expect("another size");
    }

    fn mounted(&self, flags: MsFlags, size: &str) -> nix::Result<()> {
        mount(Some("tmpfs"), &self.0, Some("tmpfs"), flags, Some(&*format!("size={size}")))
    }
}

/// A file system that a test may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS; needs a volume of 300 MiB.
    Xfs,
}

impl FileSystem {
    /// As `mount -t` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// What `mount -o` wants beside `loop`: an image and the volume it was taken from have the same identity.
    fn options(self) -> &'static str {
        match self {
            Self::Ext4 => "loop",
            Self::Xfs => "loop,nouuid",
        }
    }
}

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
        let mut this = Self::attach(tap, scratch);
        this.mount(FileSystem::Ext4);
        this
    }

    /// The same, with a file system that is made there first.
    ///
    /// # Panics
    /// When a step fails; what was done is undone.
    pub fn made_on_tap(tap: &Path, scratch: &Path, file_system: FileSystem) -> Self {
        let mut this = Self::attach(tap, scratch);
        let device = this.loop_device.as_deref().expect("attached above");
        match file_system {
            FileSystem::Ext4 => run(tool("mke2fs").args(["-q", "-F", "-t", "ext4", device])),
            FileSystem::Xfs => run(tool("mkfs.xfs").args(["-q", "-f", device])),
        };
        this.mount(file_system);
        this
    }

    fn mount(&mut self, file_system: FileSystem) {
        let device = self.loop_device.as_deref().expect("attached before");
        run(tool("mount").args(["-t", file_system.name(), device]).arg(&self.mountpoint));
        self.mounted = true;
    }

    fn attach(tap: &Path, scratch: &Path) -> Self {
        let fuse_dir = scratch.join("fuse");
        let mountpoint = scratch.join("mnt");
        // One that crashed when its device went leaves a mount that nobody serves.
        if fuse_dir.metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotConnected) {
            run(tool("umount").arg("-l").arg(&fuse_dir));
        }
        std::fs::create_dir_all(&fuse_dir).expect("mkdir");
        std::fs::create_dir_all(&mountpoint).expect("mkdir");
        let mut this = Self { fuse_dir: fuse_dir.clone(), fuse: None, loop_device: None, mountpoint, mounted: false };
        let disk = fuse_dir.join("disk");
        let child = tool("nbdfuse").arg(&disk).arg("--unix").arg(tap).stdin(Stdio::null()).spawn().expect("nbdfuse is installed");
        this.fuse = Some(child);
        wait_for("nbdfuse", || disk.metadata().ok().filter(|m| m.len() > 0));
        let output = run(tool("losetup").args(["--find", "--show"]).arg(&disk));
        let device = String::from_utf8(output.stdout).expect("text").trim().to_owned();
        this.loop_device = Some(device);
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

/// Replays the log of a copy of an XFS image and checks it.
///
/// # Panics
/// When it is not clean.
pub fn xfs_clean(image: &Path, mountpoint: &Path) {
    drop(Image::mount_writable(image, mountpoint, FileSystem::Xfs)); // the kernel replays
    run(tool("xfs_repair").args(["-f", "-n"]).arg(image));
}

/// A file system image mounted through a loop device.
#[derive(Debug)]
pub struct Image {
    mountpoint: PathBuf,
}

impl Image {
    /// Mounts it for reading and writing.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount_writable(image: &Path, mountpoint: &Path, file_system: FileSystem) -> Self {
        std::fs::create_dir_all(mountpoint).expect("mkdir");
        run(tool("mount").args(["-t", file_system.name(), "-o", file_system.options()]).arg(image).arg(mountpoint));
        Self { mountpoint: mountpoint.to_owned() }
    }

    /// Mounts an ext4 one for reading.
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

/// A store on a small file system of its own, which can be filled. Needs root.
#[derive(Debug)]
pub struct SmallStore {
    at: PathBuf,
}

impl SmallStore {
    /// Makes it; before anything of the site is started.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn of(site: &Site, bytes: u64) -> Self {
        let image = site.path("small.img");
        std::fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        run(tool("mke2fs").args(["-q", "-t", "ext4", "-m", "0"]).arg(&image));
        std::fs::create_dir_all(site.store()).expect("mkdir");
        run(tool("mount").args(["-o", "loop"]).arg(&image).arg(site.store()));
        Self { at: site.store() }
    }

    fn ballast(&self) -> PathBuf {
        self.at.join("ballast")
    }

    /// So many bytes of it are somebody else's from here on.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn take(&self, bytes: u64) {
        run(tool("fallocate").args(["-l", &bytes.to_string()]).arg(self.ballast()));
    }

    /// All of them are, to the last block.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn take_all(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.ballast()).expect("created");
        let mut piece = vec![0x5a; 1 << 20];
        while !piece.is_empty() {
            if file.write_all(&piece).and_then(|()| file.sync_data()).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
    }

    /// There is room again.
    ///
    /// # Panics
    /// When there is not.
    pub fn give_back(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }
}

impl Drop for SmallStore {
    fn drop(&mut self) {
        let _ = tool("umount").arg("-l").arg(&self.at).status();
    }
}
