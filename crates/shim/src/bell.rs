//! Waking whoever has nothing to do, without a syscall when nobody sleeps.

use crate::sync::{Arc, AtomicBool, Ordering, fence};

/// How a driver is told to ask again. In production an eventfd; called from any thread, must not block.
pub trait Wake: Send + Sync {
    /// Asking again may help now.
    fn wake(&self);
}

/// For drivers that poll: the simulator, tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// One sleeper's bell. Protocol: the sleeper finds nothing to do, calls [`Bell::arm`], *looks again*, and only then sleeps;
/// whoever makes something to do calls [`Bell::ring`] afterwards. The two fences make it impossible that the sleeper misses
/// the work and the ringer misses the sleeper.
pub(crate) struct Bell {
    armed: AtomicBool,
    wake: Arc<dyn Wake>,
}

impl Bell {
    pub(crate) fn new(wake: Arc<dyn Wake>) -> Self {
        Self { armed: AtomicBool::new(false), wake }
    }

    pub(crate) fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        self.ring_fenced();
    }

    /// As `ring`, for a caller that has fenced since it made something to do.
    pub(crate) fn ring_fenced(&self) {
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::AcqRel) {
            self.wake.wake();
        }
    }
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bell")
    }
}
