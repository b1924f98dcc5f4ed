//! The few calls to the kernel that have no safe wrapper: all `unsafe` of this crate.
//!
//! It decides nothing: which signals a guard ignores and its commands do not, how a file system is frozen, and a descriptor that
//! shows that a process ended.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, signal};

/// What would end or stop a guard, and can be ignored.
const IGNORED: [Signal; 11] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGPIPE,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTSTP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

const FIFREEZE: libc::Ioctl = nix::request_code_readwrite!(b'X', 119, size_of::<libc::c_int>());
const FITHAW: libc::Ioctl = nix::request_code_readwrite!(b'X', 120, size_of::<libc::c_int>());

/// Has this process outlive every signal that it can, and hear of its children.
pub(crate) fn ignore_signals() {
    let set = |which, how| {
        // SAFETY: neither handler runs code of ours.
        let _ = unsafe { signal(which, how) }; // fails for no signal of these
    };
    IGNORED.into_iter().for_each(|which| set(which, SigHandler::SigIgn));
    // Whoever ignores this one, which is inherited, never learns how a child ended.
    set(Signal::SIGCHLD, SigHandler::SigDfl);
}

/// Has a command start with the signals of a fresh process: what its parent ignores, and blocks, it would inherit. One that
/// `dies_with_us` is killed when the thread that started it is gone.
pub(crate) fn start_fresh(command: &mut Command, dies_with_us: bool) {
    let parent = nix::unistd::getpid().as_raw();
    let fresh = move || {
        for which in IGNORED {
            // SAFETY: the default action runs no code of ours.
            let _ = unsafe { signal(which, SigHandler::SigDfl) };
        }
        let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
        if dies_with_us {
            // SAFETY: this prctl takes integers only.
            Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
            // It may have gone before that.
            if nix::unistd::getppid().as_raw() != parent {
                return Err(Errno::ESRCH.into());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls on integers and on its own stack, and nothing else: it takes no
    // lock and allocates nothing.
    unsafe { command.pre_exec(fresh) };
}

/// A descriptor that can be read from as soon as a child has ended. The child must not have been waited for yet.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let flags: libc::c_uint = 0;
    // SAFETY: pidfd_open takes integers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the call made a new descriptor (that is closed on exec), which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Freezes a file system: returns when all is written and nothing is written any more.
pub(crate) fn freeze(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: FIFREEZE looks at no argument; the descriptor is borrowed and so open.
    Errno::result(unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) }).map(drop)
}

/// Thaws it.
pub(crate) fn thaw(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(directory.as_raw_fd(), FITHAW, 0) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernel() {
        assert_eq!((FIFREEZE, FITHAW), (0xC004_5877, 0xC004_5878), "linux/fs.h");
    }
}
