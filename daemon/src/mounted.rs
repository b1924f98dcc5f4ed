//! For tests: a folder whose file system becomes read-only, as one does after an error.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const NONE: Option<&str> = None;

/// A folder that is mounted over itself, as this thread sees it and those that it starts.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// `None`: nothing can be mounted here, which is said.
    pub(crate) fn over(folder: &Path) -> Option<Self> {
        let mounted = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE))
            .and_then(|()| mount(Some(folder), folder, NONE, MsFlags::MS_BIND, NONE));
        match mounted {
            Ok(()) => Some(Self(folder.to_owned())),
            Err(error) => {
                eprintln!("skipped: nothing can be mounted here ({error})");
                None
            }
        }
    }

    /// Has it take no write, or take writes again.
    pub(crate) fn set_read_only(&self, is_read_only: bool) {
        let how = if is_read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        mount(NONE, &self.0, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | how, NONE).expect("remounted");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH); // the folder below it goes with its owner
    }
}
