//! Devices of the host that are put back on their own disks, and their taps out of the write path.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use farside_control::{ApiError, ErrorCode};
use farside_insert::Insertion;
use farside_region::Name;
use tracing::error;

use super::LEAVE_WAIT;
use crate::change::Change;
use crate::group::Ask;
use crate::state_dir::Mark;
use crate::supervisor::Daemon;
use crate::tap;

impl Daemon {
    /// Puts the host's device back on its own disks. What it writes from then on passes no tap: nothing is published after it.
    ///
    /// † Whatever interrupts what this is for, the next start inserts again, and compares: that it stands aside is in memory only.
    pub(super) async fn take_out_of_device(&self, name: &Name, insertion: Arc<Insertion>, dir: &Path) -> Result<(), ApiError> {
        Mark::TrackingLost.put(dir, true).map_err(ApiError::internal)?;
        self.ask(name, |id, reply| Ask::StandAside(id, true, reply)).await?;
        insertion.leaves();
        let runtime_dir = self.around.runtime_dir.clone();
        let change = Change::TakeOut { device: insertion.device().to_owned() };
        let out = tokio::task::spawn_blocking(move || change.make(&runtime_dir));
        let error = match tokio::time::timeout(LEAVE_WAIT, out).await {
            Ok(Ok(Ok(_))) => return Ok(()),
            Ok(Ok(Err(error))) => error,
            Ok(Err(error)) => error.into(),
            // Paused it stays: the table may change yet.
            Err(_) => {
                let what = format!("volume {name} stays, and is paused: the requests of its host do not end");
                let todo = "see the kernel's log, then say the same again; or `farside volume resume` it";
                return Err(ApiError::new(ErrorCode::Unavailable, what, todo));
            }
        };
        self.ask(name, |id, reply| Ask::StandAside(id, false, reply)).await?;
        let what = format!("volume {name} stays: {error:#}");
        Err(ApiError::new(ErrorCode::Conflict, what, "then say the same again"))
    }

    /// A volume whose device was put back on its own disks stays, for a reason that was found later. Its tap is put under the device
    /// again as soon as it is noticed that it is not there, and everything is compared.
    pub(super) async fn stays_after_all(&self, name: &Name, mut why: ApiError) -> ApiError {
        if let Err(error) = self.ask(name, |id, reply| Ask::StandAside(id, false, reply)).await {
            error!(volume = %name, error = %error.message, "it was put aside, and stays so");
        }
        why.message += "; its device was on its own disks for a moment, so everything will be compared";
        why
    }
}

/// Puts a device on its own disks, if nobody uses it, and sees that nobody begins to. The next start finds it there, and
/// compares everything.
pub(super) fn take_out_unused(insertion: &Insertion, runtime_dir: &Path) -> anyhow::Result<OwnedFd> {
    let nobody = farside_blockio::hold(insertion.device())?;
    // † It is granted beside whoever has the device open without a claim, and what he writes from then on would pass no tap.
    tap::opened_by_nobody(insertion.device())?;
    insertion.leaves();
    if let Err(error) = (Change::TakeOut { device: insertion.device().to_owned() }).make(runtime_dir) {
        insertion.stays();
        return Err(error);
    }
    Ok(nobody)
}
