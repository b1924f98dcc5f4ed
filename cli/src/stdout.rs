//! Standard output as the target of a restore. What a shell has opened there, a file or a device, is guarded like one that is named (T13), and
//! durable at the end; to a pipe nothing of that applies.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use farside_blockio::{Users, ancestors, open_still, openers_but, users_of_file_but};
use farside_store::StoreError;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::failure::{Failure, OrFail as _};
use crate::guard;

/// Standard output, held for one alone if somebody else could have it.
#[derive(Debug)]
pub(crate) struct Stdout {
    out: File,
    name: PathBuf,
    claim: Claim,
}

#[derive(Debug)]
enum Claim {
    /// Nobody else writes there, or it keeps nothing.
    None,
    File {
        _lock: Flock<File>,
    },
    Device {
        _claimed: File,
    },
}

impl Stdout {
    /// Not through the buffer that this process has of it, which looks for the ends of lines.
    ///
    /// # Errors
    /// That a restore from `store` must not write there, or that somebody else has it.
    pub(crate) fn open(store: &Path) -> Result<Self, Failure> {
        let fd = std::io::stdout().as_fd().try_clone_to_owned().or_fail("standard output cannot be written to")?;
        Self::of(fd.into(), store)
    }

    fn of(out: File, store: &Path) -> Result<Self, Failure> {
        let meta = out.metadata().or_fail("what standard output is cannot be told")?;
        let is_device = meta.file_type().is_block_device();
        if !is_device && !meta.is_file() {
            return Ok(Self { out, name: "standard output".into(), claim: Claim::None });
        }
        let link = PathBuf::from(format!("/proc/self/fd/{}", out.as_raw_fd()));
        let which = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.rdev(), meta.dev(), meta.ino()));
        // Nothing else that has the name by now.
        let name = std::fs::read_link(&link).ok().filter(|name| which(name) == which(&link)).unwrap_or(link);
        guard::refuse(&name, store)?;
        let busy = |why: &str| StoreError::TargetBusy { path: name.clone(), why: why.to_owned() };
        // Neither claim nor lock is refused beside a virtual machine, or a loop device.
        let ancestors = ancestors();
        let is_ours = |pid: u32| ancestors.contains(&pid);
        let users = open_still(|| match is_device {
            true => openers_but(&name, is_ours),
            false => users_of_file_but(&out, Users::Writers, is_ours),
        });
        if !users.is_empty() {
            return Err(busy(&format!("it is open in {}", users.join(", "))).into());
        }
        let claim = if is_device {
            let claimed = File::options().read(true).custom_flags(OFlag::O_EXCL.bits()).open(&name);
            let claimed = claimed.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EBUSY) => busy("it is mounted, or part of another device (see `lsblk` and /sys/block/*/holders)"),
                _ => StoreError::of_target("opening", &name, error),
            });
            Claim::Device { _claimed: claimed? }
        } else {
            let handle = out.try_clone().or_fail("standard output cannot be written to")?;
            match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Claim::File { _lock: lock },
                Err((_, Errno::EWOULDBLOCK)) => return Err(busy("another process has it locked (a daemon, or a restore)").into()),
                Err(_) => Claim::None, // a file system that knows no locks
            }
        };
        Ok(Self { out, name, claim })
    }

    /// What it is called in messages, and where to write to.
    pub(crate) fn writer(&mut self) -> (&Path, &mut dyn Write) {
        (&self.name, &mut self.out)
    }

    /// † What a file or a device has taken may be in memory only, and fail to reach the disk.
    ///
    /// # Errors
    /// That it did.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self.claim {
            Claim::None if !self.out.metadata().is_ok_and(|meta| meta.is_file()) => Ok(()),
            _ => self.out.sync_all().map_err(|error| StoreError::of_target("syncing", &self.name, error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn a_file_that_is_redirected_to_is_guarded_and_a_pipe_is_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = dir.path().join("store");
        std::fs::create_dir(&store).expect("made");
        std::fs::write(store.join("farside-store.json"), "{}").expect("written");
        let inside = File::create(store.join("out")).expect("made");
        let refused = Stdout::of(inside, &store).expect_err("it is in the store");
        assert!(refused.exit == Exit::Refused && refused.message.contains("inside the store"), "{refused:?}");

        let path = dir.path().join("out");
        let held = Flock::lock(File::create(&path).expect("made"), FlockArg::LockExclusiveNonblock).expect("locked");
        let refused = Stdout::of(File::create(&path).expect("opened"), &store).expect_err("somebody has it");
        assert!(refused.message.contains(&path.display().to_string()), "{refused:?}");
        drop(held);
        let mut free = Stdout::of(File::create(&path).expect("opened"), &store).expect("nobody has it");
        Stdout::of(File::options().write(true).open(&path).expect("opened"), &store).expect_err("a restore has it");
        assert_eq!(free.writer().0, path);
        free.writer().1.write_all(b"bytes").expect("written");
        free.finish().expect("durable");
        assert_eq!(std::fs::read(&path).expect("read"), b"bytes");

        let other = File::options().append(true).open(&path).expect("opened");
        let mut writer = std::process::Command::new("sleep").arg("600").stdout(other).spawn().expect("started");
        let refused = Stdout::of(File::options().write(true).open(&path).expect("opened"), &store);
        writer.kill().and_then(|()| writer.wait()).expect("ended");
        let refused = refused.expect_err("it is written to");
        assert!(refused.message.contains(&writer.id().to_string()), "{refused:?}");

        let (_reader, pipe) = std::io::pipe().expect("a pipe");
        let mut pipe = Stdout::of(File::from(std::os::fd::OwnedFd::from(pipe)), &store).expect("a pipe");
        assert_eq!(pipe.writer().0, Path::new("standard output"));
        pipe.finish().expect("nothing to sync");
    }
}
