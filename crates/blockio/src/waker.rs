//! A way for other threads to interrupt a queue thread that sleeps in its ring.
//!
//! Invariant: whatever was published before [`Waker::wake`] is seen by the queue thread after the wake's completion. Several
//! wakes before the queue thread looks are one.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::SharedFd;

/// Wakes the queue thread whose ring reads it ([`crate::Ring::wake_read`]). Cheap to clone; one write call per sleep at most.
#[derive(Clone, Debug)]
pub struct Waker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    fd: SharedFd,
    pending: AtomicBool,
}

impl Waker {
    /// A new one.
    ///
    /// # Errors
    /// When no eventfd can be had (out of file descriptors).
    pub fn new() -> std::io::Result<Self> {
        // Blocking on purpose: a non-blocking descriptor would make the ring's read fail instead of wait.
        let fd = OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        Ok(Self { inner: Arc::new(Inner { fd: Arc::new(fd), pending: AtomicBool::new(false) }) })
    }

    /// Makes the ring's wake read complete, now or when it is next armed. Never blocks.
    pub fn wake(&self) {
        if !self.inner.pending.swap(true, Ordering::SeqCst) {
            nix::unistd::write(&*self.inner.fd, &1u64.to_ne_bytes()).expect("an eventfd far from its maximum takes 1");
        }
    }

    pub(crate) fn fd(&self) -> &SharedFd {
        &self.inner.fd
    }

    /// Called when a wake read has completed, before the completion is shown: later wakes write again.
    pub(crate) fn seen(&self) {
        self.inner.pending.store(false, Ordering::SeqCst);
    }
}
