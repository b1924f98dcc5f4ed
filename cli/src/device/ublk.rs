//! By ublk: `/dev/ublkbN` over the view itself, without a socket in between. It has no recovery, so it ends with its server; its token says
//! whose it is.
//!
//! The device has a thread of its own that makes it, waits for the end of its server, and takes away what is left then, however it came:
//! a ring that broke is closed, or the device's users would wait for ever. The server's thread only passes requests on: those who carry
//! them out wait for the store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use farside_blockio::{Waker, process};
use farside_nbd::kernel::Claim;
use farside_ublk::{Broken, Handle, Kernel, Shape, UblkError};
use farside_view::ViewQueue;

use crate::device::{By, Owner, PointView, load};
use crate::failure::{Exit, Failure, OrFail as _};

const MODULE: &str = "ublk_drv";
/// As many as the view may be asked at once; each may take so much memory.
const DEPTH: u16 = 64;
const IO_BYTES_MAX: u32 = 512 << 10;
/// A discard of less changes nothing.
const GRANULE_MAX: u64 = 1 << 20;

/// What the tokens of these devices begin with; then come the number of the process (the kernel has no larger ones than 22 bits), and the
/// last bits of when it began.
const MARK: u64 = 0xfa51d;
const MARK_SHIFT: u32 = 44;
const PID_SHIFT: u32 = 22;
const FIELD: u64 = (1 << PID_SHIFT) - 1;

/// Dropped, what still uses it sees errors.
pub(crate) struct Device {
    path: PathBuf,
    server: Handle,
    keeper: Option<JoinHandle<Result<(), UblkError>>>,
}

impl Device {
    /// `Auto`: only where nothing speaks against it.
    pub(super) fn attach(by: By, view: &Arc<PointView>, (block, threads): (u32, usize), owner: Owner) -> Result<Self, Failure> {
        let no_device = |error: &UblkError| Failure::from_error(Exit::Failed, error, "run it as root, or say --device=nbd");
        let kernel = kernel().map_err(|error| no_device(&error))?;
        let has_partitions = !kernel.may_look_for_partitions() && has_partitions(view);
        if has_partitions && by == By::Auto {
            let message = "this kernel's driver looks for partitions in a way that a process which is killed meanwhile never ends \
                           (known fault scan-under-lock), and the point has a partition table";
            return Err(Failure::new(Exit::Refused, message, "say --device=nbd, or --device=ublk nevertheless"));
        }
        sweep().map_err(|error| no_device(&error))?;
        let shape = Shape {
            token: token(owner),
            bytes: view.bytes(),
            block,
            granule: view.granule_bytes().min(GRANULE_MAX) as u32,
            readonly: !view.is_writable(),
            has_partitions,
            depth: DEPTH,
            io_bytes_max: IO_BYTES_MAX,
        };
        let (tell, told) = mpsc::channel();
        let view = view.clone();
        let keep = move || keep(&shape, view, threads, &tell);
        let keeper = std::thread::Builder::new().name("ublk-device".into()).spawn(keep).or_fail("cannot start")?;
        match told.recv() {
            Ok((path, server)) => Ok(Self { path, server, keeper: Some(keeper) }),
            // It never came to be, and nothing of it is left.
            Err(_) => match keeper.join() {
                Ok(Err(error)) => Err(no_device(&error)),
                _ => Err(Failure::new(Exit::Failed, "the ublk device ended as it was made", "see what is said above")),
            },
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is gone already.
    pub(super) fn is_over(&self) -> bool {
        self.keeper.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes it away; without a claim from whoever uses it. Waits for the requests that are under way.
    pub(super) fn end(&mut self, claim: Option<Claim>) -> Result<(), Failure> {
        self.server.stop();
        let ended = self.keeper.take().map_or(Ok(Ok(())), JoinHandle::join);
        drop(claim); // † not before: who mounted it in between would lose it
        let ended = ended.unwrap_or(Ok(())); // one that panicked has said so
        ended.map_err(|error| {
            Failure::from_error(Exit::Failed, &error, "the next `point open --device` or `drill stop` tries again")
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.end(None); // its process ends
    }
}

/// The running kernel, if its ublk will do.
fn kernel() -> Result<Kernel, UblkError> {
    let kernel = match Kernel::running() {
        Err(UblkError::NotLoaded) if nix::unistd::geteuid().is_root() => {
            load(MODULE);
            Kernel::running()?
        }
        kernel => kernel?,
    };
    kernel.allows_without_recovery()?;
    Ok(kernel)
}

/// What cannot be read is none.
fn has_partitions(view: &PointView) -> bool {
    let mut first = [0; 512];
    view.read(0, &mut first).is_ok() && first.ends_with(&[0x55, 0xaa])
}

/// Makes a device, tells where it is and what stops it, and serves it to its end. Nothing of it is left then, unless that fails.
fn keep(shape: &Shape, view: Arc<PointView>, threads: usize, tell: &Sender<(PathBuf, Handle)>) -> Result<(), UblkError> {
    // What is written to the device may be what the kernel wants to be rid of before it gives memory. For this thread and those that it
    // starts; without the privilege it is as it was.
    let _ = process::set_io_flusher();
    let failed = |source: io::Error| UblkError::Io { what: "start threads for", path: "a ublk device".into(), source };
    let waker = Waker::new().map_err(failed)?;
    let queue = ViewQueue::new(view, threads, &waker).map_err(failed)?;
    let device = farside_ublk::Device::without_recovery(shape)?;
    let path = device.path();
    let (mut servers, handle) = device.servers(vec![waker]);
    let server = servers.pop().expect("it has one queue");
    let (ready, is_ready) = mpsc::channel();
    let serve = move || {
        server.run(queue, move || {
            let _ = ready.send(()); // somebody waits for it
        })
    };
    let serving = match std::thread::Builder::new().name("ublk-queue".into()).spawn(serve) {
        Ok(serving) => serving,
        Err(source) => {
            farside_ublk::delete(shape.token)?;
            return Err(failed(source));
        }
    };
    let live = match is_ready.recv() {
        Ok(()) => device.go_live().map(|()| true).inspect_err(|_| handle.stop()),
        Err(_) => Ok(false), // why, it says as it ends
    };
    let is_live = matches!(live, Ok(true));
    if is_live {
        let _ = tell.send((path.clone(), handle.clone()));
    }
    let (served, abandoned) = match serving.join() {
        Ok(Ok(abandoned)) => (Ok(()), abandoned),
        Ok(Err(Broken { why, abandoned })) => (Err(why), abandoned.map(|abandoned| *abandoned)),
        Err(_) => (Ok(()), None), // it has said so, and its ring is this process's until it ends
    };
    if let Some(abandoned) = abandoned {
        abandoned.close();
    }
    if is_live && !handle.is_stopping() {
        let why = served.as_ref().err().map_or_else(|| "ended by somebody else (ublk del?)".to_owned(), ToString::to_string);
        eprintln!("farside: {} is not served any more: {why}", path.display());
    }
    let deleted = farside_ublk::delete(shape.token);
    live.and(served).and(deleted).map(drop)
}

/// Takes away what killed processes have left.
pub(super) fn sweep() -> Result<Vec<PathBuf>, UblkError> {
    farside_ublk::sweep(is_left)
}

fn token(owner: Owner) -> u64 {
    MARK << MARK_SHIFT | (u64::from(owner.pid) & FIELD) << PID_SHIFT | owner.began & FIELD
}

fn is_left(token: u64) -> bool {
    let owner = Owner { pid: (token >> PID_SHIFT & FIELD) as u32, began: token & FIELD };
    token >> MARK_SHIFT == MARK && owner.is_gone(|began| began & FIELD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_was_left_if_its_process_is_not_the_one_that_made_it() {
        let this = Owner::this().expect("it runs");
        assert!(!is_left(token(this)), "it lives");
        assert!(!is_left(token(Owner { began: this.began + FIELD + 1, ..this })), "only the last bits of it are known");
        assert!(is_left(token(Owner { began: this.began + 1, ..this })), "another one had its number");
        let mut child = std::process::Command::new("true").spawn().expect("it starts");
        child.wait().expect("it ends");
        let of_dead = token(Owner { pid: child.id(), ..this });
        assert!(is_left(of_dead));
        for of_others in [0, 1, u64::MAX, of_dead & !(MARK << MARK_SHIFT), of_dead ^ 1 << 63] {
            assert!(!is_left(of_others), "{of_others:#x}");
        }
    }
}
