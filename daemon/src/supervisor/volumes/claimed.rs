//! Volumes whose devices are claimed before they leave.
//!
//! Invariant: † who takes the tap of an inserted volume out from under its device to keep that has claimed the end of the volume before, and has it
//! until it is kept durably, or given up, what became of the device: whoever closes and opens volumes by himself (`insert_again`, `serve_again`,
//! `grow`), or removes them, would put a tap under a device that is given away, or leave it on a tap that nobody serves.

use std::sync::Arc;

use farside_region::Name;
use tokio::task::JoinError;
use tokio::time::error::Elapsed;

use super::inserted::HeldDevice;
use super::{LEAVE_WAIT, Volumes};
use crate::supervisor::Daemon;
use crate::tap::{self, Unused};

/// The device of a volume, which nobody uses.
pub(crate) struct Claimed {
    pub(super) tap: tap::Handle,
    pub(super) unused: Unused,
    /// The host's device has been put back on its own disks.
    pub(super) is_out: bool,
    /// It, if it is kept from its host from here on.
    pub(super) held: Option<HeldDevice>,
    /// Nobody else ends the volume.
    pub(super) end: Option<EndClaimed>,
}

impl Claimed {
    /// Of a volume whose device is on its own disks: it leaves, even if somebody has the tap's own device open.
    pub(super) async fn once_out(tap: tap::Handle, held: Option<HeldDevice>, end: Option<EndClaimed>) -> Self {
        let unused = match claimed(&tap).await {
            Ok(Ok(Ok(unused))) => unused,
            Ok(Ok(Err(error))) => Unused::Left(error),
            Ok(Err(error)) => Unused::Left(error.into()),
            Err(_) => Unused::Left(anyhow::anyhow!("it does not answer")),
        };
        Self { tap, unused, is_out: true, held, end }
    }

    /// Whoever says this ends the volume. False: its end was not claimed with it.
    pub(crate) fn takes_its_end(&mut self) -> bool {
        self.end.take().map(EndClaimed::take).is_some()
    }

    /// Takes it away from the host; its tap serves still. Waits for the device. Gives the host's own, where that is kept from it.
    ///
    /// # Errors
    /// When it is still there.
    pub(crate) fn withdraw(self, name: &Name) -> anyhow::Result<Option<HeldDevice>> {
        self.tap.withdraw(name, self.unused).map(|()| self.held)
    }
}

/// Nobody but who has this closes a volume, or lets it go. Dropped, the volume is served on.
pub(crate) struct EndClaimed {
    daemon: Arc<Daemon>,
    name: Option<Name>,
}

impl EndClaimed {
    /// `None`: somebody has it, or the volume is not served.
    pub(super) fn of(daemon: &Arc<Daemon>, name: &Name) -> Option<Self> {
        let volumes: &Volumes = &daemon.volumes;
        volumes.begin_to_leave(name).then(|| Self { daemon: daemon.clone(), name: Some(name.clone()) })
    }

    /// The volume ends, or somebody else says that it stays.
    fn take(mut self) {
        self.name = None;
    }
}

impl Drop for EndClaimed {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.daemon.stays(&name);
        }
    }
}

/// A device that answers in time, or does not: whether nobody uses it.
pub(super) async fn claimed(tap: &tap::Handle) -> Result<Result<anyhow::Result<Unused>, JoinError>, Elapsed> {
    let tap = tap.clone();
    tokio::time::timeout(LEAVE_WAIT, tokio::task::spawn_blocking(move || tap.claim())).await
}
