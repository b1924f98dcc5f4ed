//! When a device becomes known to its host by the volume's name.
//!
//! Invariant: a device that was made now is not known before its first write ([`crate::canary`]) has ended. † That write puts back what was read a
//! moment before; the block layer keeps no order between it and one of the host's, so what comes late would take the place of an acknowledged
//! write. It is never given up by whoever waits, for the kernel cannot take it back: it may wait for its disk, for a group that cannot write its
//! intent map, or, its helper killed with the daemon, for a successor to whom the kernel issues it again.
//!
//! | Who shows it | Waits for |
//! |---|---|
//! | whoever made the device and sent the write | the helper that sent it |
//! | a successor that finds the device without its name | the lock that such a helper holds until the kernel lets go of it ([`change::is_idle`]) |
//!
//! An opening does not wait for that beyond the canary's patience: the volume joins its group, by which such a write may go on, and a thread shows the device
//! later. Meanwhile the volume's status says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::{error, info, warn};

use crate::channel::{Nothing, Receiver};
use crate::{change, locked};

const POLL: Duration = Duration::from_millis(50);

/// A first write that may not have ended.
#[derive(Debug)]
pub(crate) enum FirstWrite {
    /// Ours; its helper's end comes here, or nobody is there any more who could send it.
    Sent(Receiver<anyhow::Result<bool>>),
    /// A predecessor's, of this device.
    Left { runtime_dir: PathBuf, device: PathBuf },
}

impl FirstWrite {
    /// What a predecessor may have left in a device that it did not show. `None`: nothing.
    pub(crate) fn left(runtime_dir: &Path, device: &Path) -> Option<Self> {
        let left = Self::Left { runtime_dir: runtime_dir.to_owned(), device: device.to_owned() };
        (!left.has_ended()).then_some(left)
    }

    /// Whether it has ended. Waits a moment, if it is ours.
    fn has_ended(&self) -> bool {
        match self {
            Self::Sent(end) => !matches!(end.recv_timeout(POLL), Err(Nothing::Yet)),
            Self::Left { runtime_dir, device } => change::is_idle(runtime_dir, device).unwrap_or_else(|error| {
                warn!(device = %device.display(), "whether a first write is under way is unknown: {error:#}");
                false
            }),
        }
    }

    fn wait_a_moment(&self) {
        if let Self::Left { .. } = self {
            std::thread::sleep(POLL); // the other waits when it looks
        }
    }
}

/// Whether a volume's device is known by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is to be said of it: it is known, or there is none.
    Settled,
    /// Not before its first write has ended.
    Awaited,
    /// It could not be made known, for this reason.
    Failed(String),
    /// Never again by us.
    Over,
}

/// The making known of one volume's device, by one opening.
#[derive(Clone, Debug)]
pub(crate) struct Showing {
    state: Arc<Mutex<State>>,
}

impl Showing {
    pub(crate) fn new() -> Self {
        Self { state: Arc::new(Mutex::new(State::Settled)) }
    }

    /// Makes it known by `publish`: now, or after `first`.
    ///
    /// # Errors
    /// When that cannot be done, or no thread be had for it.
    pub(crate) fn show(
        &self,
        first: Option<FirstWrite>,
        publish: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let Some(first) = first else { return publish() };
        *locked(&self.state) = State::Awaited;
        let state = self.state.clone();
        let wait = move || {
            loop {
                let has_ended = first.has_ended();
                // † Held while it is made known: who withdraws it comes before that, or after.
                let mut state = locked(&state);
                if *state != State::Awaited {
                    return;
                }
                if has_ended {
                    *state = publish().map_or_else(
                        |error| {
                            error!("a device stays without its name, although its first write has ended: {error}");
                            State::Failed(error.to_string())
                        },
                        |()| {
                            info!("a first write has ended at last; its device has its name now");
                            State::Settled
                        },
                    );
                    return;
                }
                drop(state);
                first.wait_a_moment();
            }
        };
        std::thread::Builder::new().name("show".into()).spawn(wait).map(drop)
    }

    /// It is not made known any more.
    pub(crate) fn give_up(&self) {
        *locked(&self.state) = State::Over;
    }

    /// Why its host does not find it, if it does not.
    pub(crate) fn lacks(&self) -> Option<String> {
        match &*locked(&self.state) {
            State::Awaited => Some("a first write to it has not ended: its disk, or its intent map, keeps it".to_owned()),
            State::Failed(why) => Some(why.clone()),
            State::Settled | State::Over => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::channel::channel;

    use super::*;

    /// Says when it is made known.
    fn shown_after(first: FirstWrite) -> (Showing, Receiver<()>) {
        let (shown, is_shown) = channel();
        let showing = Showing::new();
        showing.show(Some(first), move || shown.send(()).map_err(io::Error::other)).expect("a thread");
        (showing, is_shown)
    }

    #[test]
    fn r13_a_device_is_not_known_before_its_first_write_has_ended() {
        let (end, first) = channel();
        let (showing, is_shown) = shown_after(FirstWrite::Sent(first));
        assert!(showing.lacks().is_some() && is_shown.try_recv().is_err());
        end.send(Err(anyhow::anyhow!("its disk refuses it"))).expect("awaited");
        is_shown.recv().expect("shown");
        assert_eq!(showing.lacks(), None);
    }

    #[test]
    fn r13_a_successor_waits_for_a_helper_that_is_left() {
        let dir = tempfile::tempdir().expect("temp dir");
        let device = Path::new("/dev/null");
        assert!(FirstWrite::left(dir.path(), device).is_none());
        let helper = change::tests::lock(dir.path(), device);
        let left = FirstWrite::left(dir.path(), device).expect("one is at work");
        let (_, is_shown) = shown_after(left);
        assert!(is_shown.try_recv().is_err());
        drop(helper);
        is_shown.recv().expect("shown");
    }

    #[test]
    fn a_device_that_is_withdrawn_is_not_made_known() {
        let (end, first) = channel();
        let (showing, is_shown) = shown_after(FirstWrite::Sent(first));
        showing.give_up();
        drop(end);
        is_shown.recv().expect_err("its thread ends without it");
        assert_eq!(showing.lacks(), None);
    }

    #[test]
    fn what_cannot_be_made_known_is_said() {
        let showing = Showing::new();
        showing.show(None, || Err(io::Error::other("read-only"))).expect_err("at once");
        let (end, first) = channel::<anyhow::Result<bool>>();
        let (tried, is_tried) = channel::<()>();
        let publish = move || {
            drop(tried);
            Err(io::Error::other("read-only"))
        };
        showing.show(Some(FirstWrite::Sent(first)), publish).expect("a thread");
        drop(end);
        is_tried.recv().expect_err("tried");
        assert_eq!(showing.lacks().as_deref(), Some("read-only"));
    }
}
