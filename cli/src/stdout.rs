//! Standard output as the target of a restore. What a shell has opened there, a file or a device, is guarded like one that is named (T13), and
//! durable at the end; to a pipe nothing of that applies.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use farside_store::{OutputHold, StoreError};

use crate::failure::{Failure, OrFail as _};
use crate::guard;

/// Standard output, held for one alone if somebody else could have it.
#[derive(Debug)]
pub(crate) struct Stdout {
    out: File,
    name: PathBuf,
    /// `None`: a pipe or the like, which keeps nothing.
    held: Option<OutputHold>,
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
        if !meta.file_type().is_block_device() && !meta.is_file() {
            return Ok(Self { out, name: "standard output".into(), held: None });
        }
        let link = PathBuf::from(format!("/proc/self/fd/{}", out.as_raw_fd()));
        let which = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.rdev(), meta.dev(), meta.ino()));
        // Nothing else that has the name by now.
        let name = std::fs::read_link(&link).ok().filter(|name| which(name) == which(&link)).unwrap_or(link);
        guard::refuse(&name, store)?;
        let held = OutputHold::of(&out, &name)?;
        Ok(Self { out, name, held: Some(held) })
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
        if self.held.is_none() {
            return Ok(());
        }
        self.out.sync_all().map_err(|error| StoreError::of_target("syncing", &self.name, error).into())
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{Flock, FlockArg};

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
