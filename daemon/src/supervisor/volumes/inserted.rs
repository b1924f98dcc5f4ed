//! Devices of the host that are put back on their own disks, and their taps out of the write path.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use farside_blockio::dm::DevNumber;
use farside_blockio::sectors_written;
use farside_control::{ApiError, ErrorCode};
use farside_insert::Insertion;
use farside_region::Name;
use tracing::{error, warn};

use super::LEAVE_WAIT;
use super::claimed::{Claimed, EndClaimed};
use crate::change::{self, Change};
use crate::config::VolumeConfig;
use crate::group::{Ask, Leaving};
use crate::state_dir::Mark;
use crate::supervisor::Daemon;
use crate::tap::{self, Unused};

/// A device of the host under which a tap is, or was until now, and which nobody but this uses.
///
/// Invariant: as long as it is kept nobody mounts the device, or builds something on it. Dropped before its volume left, its tap comes back under it, and
/// everything is compared.
#[derive(Debug)]
pub(crate) struct HeldDevice {
    insertion: Arc<Insertion>,
    /// What the kernel had counted as written there when it was taken.
    written: Option<u64>,
    is_given_up: bool,
    _nobody: OwnedFd,
}

impl HeldDevice {
    /// Takes a device that nobody uses; its tap stays under it. Waits a moment for who is about to let go.
    ///
    /// # Errors
    /// Who uses it.
    fn take(insertion: Arc<Insertion>) -> anyhow::Result<Self> {
        let nobody = farside_blockio::hold(insertion.device())?;
        // † It is granted beside whoever has the device open without a claim, and what he writes from then on would pass no tap.
        tap::opened_by_nobody(insertion.device())?;
        let written = written_on(insertion.device());
        Ok(Self { insertion, written, is_given_up: false, _nobody: nobody })
    }

    /// Puts it on its own disks.
    ///
    /// # Errors
    /// When it is not: it rests on its tap then, as far as is known.
    fn take_out(&self, runtime_dir: &Path) -> anyhow::Result<()> {
        self.insertion.hold(true);
        Change::TakeOut { device: self.insertion.device().to_owned() }.make(runtime_dir).map(drop)
    }

    /// Its volume was closed: lets go of it, with one way left to its disks. Says what the kernel had counted as written when it was taken.
    ///
    /// # Errors
    /// When its twin is still there.
    pub(crate) fn let_go(mut self) -> anyhow::Result<UsedByNobody> {
        self.is_given_up = true;
        let device = self.insertion.device().to_owned();
        self.insertion.remove_twin().with_context(|| format!("the twin of {} stays", self.insertion.name()))?;
        Ok(UsedByNobody { device, written: self.written.take() })
    }
}

impl Drop for HeldDevice {
    fn drop(&mut self) {
        if !self.is_given_up {
            self.insertion.hold(false); // that it is on its own disks is noticed from here on
        }
    }
}

/// A device that was held, and is to be held by somebody else.
#[derive(Debug)]
pub(crate) struct UsedByNobody {
    device: PathBuf,
    written: Option<u64>,
}

impl UsedByNobody {
    /// Held again, it was written to by nobody since it was taken at first. † What was written passed no tap, and is in no point.
    ///
    /// # Errors
    /// When somebody wrote there, or nobody can tell.
    pub(crate) fn was_left_alone(&self) -> anyhow::Result<()> {
        let now = written_on(&self.device);
        anyhow::ensure!(
            self.written.is_some() && now == self.written,
            "somebody wrote to {} while its tap was being taken out, or that cannot be told: stop that, and say the same again",
            self.device.display()
        );
        Ok(())
    }
}

/// A flush counts as a write of no sector, and changes nothing.
fn written_on(device: &Path) -> Option<u64> {
    sectors_written(DevNumber::at(device).ok()?)
}

impl Daemon {
    /// Puts the host's device back on its own disks. What it writes from then on passes no tap: nothing is published after it.
    ///
    /// † Whatever interrupts what this is for, the next start inserts again, and compares: that it stands aside is in memory only.
    pub(super) async fn take_out_of_device(&self, name: &Name, insertion: Arc<Insertion>, dir: &Path) -> Result<(), ApiError> {
        Mark::TrackingLost.put(dir, true).map_err(ApiError::internal)?;
        self.ask(name, |id, reply| Ask::StandAside(id, true, reply)).await?;
        insertion.leaves();
        let runtime_dir = self.around.runtime_dir.clone();
        let device = insertion.device().to_owned();
        let out = tokio::task::spawn_blocking(move || {
            // † A failed flush of its disk that no client has heard of is heard of here: past the tap nobody is told any more (T14).
            Change::Sync { tap: device.clone() }.make(&runtime_dir)?;
            Change::TakeOut { device }.make(&runtime_dir)
        });
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

    /// Claims the end of a volume that is to be kept from its host, and what the host uses of it: its tap's device, or the device that the tap is
    /// under. Nothing is changed.
    ///
    /// # Errors
    /// Who uses it, or is at it.
    pub(crate) async fn claim_unused(self: &Arc<Self>, volume: &VolumeConfig) -> Result<Claimed, ApiError> {
        let name = &volume.name;
        let Some(end) = EndClaimed::of(self, name) else {
            let what = "wait for that, and say the same again: `farside volume list`";
            return Err(ApiError::new(ErrorCode::Conflict, format!("volume {name} is just being closed or opened"), what));
        };
        let Leaving { tap, insertion, .. } = self.ask(name, Ask::Leaving).await?;
        let Some(insertion) = insertion else { return Ok(Claimed { end: Some(end), ..self.claim(name).await? }) };
        let conflict = |message: String, what: &str| ApiError::new(ErrorCode::Conflict, message, what);
        // † What is written to later is found by the name that is configured.
        if !matches!((DevNumber::at(&volume.backing), DevNumber::at(insertion.device())), (Ok(named), Ok(is)) if named == is) {
            let (named, is) = (volume.backing.display(), insertion.name());
            let what = "correct `backing` in its file in farsided.d, `systemctl restart farsided` (a reload keeps what is served as it is), and say the same again";
            return Err(conflict(
                format!("{named} is not the device that the tap of volume {name} is under: that is {is}"),
                what,
            ));
        }
        let (backings, device) = (self.around.backings.clone(), volume.backing.clone());
        let hidden = tokio::task::spawn_blocking(move || backings.refuse_nameless(&device)).await.map_err(ApiError::internal)?;
        hidden.map_err(|error| {
            let what = "its host would mount it at the next boot: protect its disk without --device, or restore the point to another disk";
            conflict(format!("volume {name} stays: {error:#}"), what)
        })?;
        let held = tokio::task::spawn_blocking(move || HeldDevice::take(insertion));
        let held = match tokio::time::timeout(LEAVE_WAIT, held).await {
            Ok(held) => held.map_err(ApiError::internal)?,
            Err(_) => Err(anyhow::anyhow!("its device does not answer")),
        };
        let held = held.map_err(|error| {
            let what = "unmount what is on it, end what uses it (`lsblk`, `fuser -v`), and say the same again";
            conflict(format!("volume {name} is in use: {error:#}"), what)
        })?;
        let unused = Unused::Left(anyhow::anyhow!("its tap is still under the device of the host"));
        Ok(Claimed { tap, unused, is_out: false, held: Some(held), end: Some(end) })
    }

    /// Takes the tap out from under a device that was claimed; one whose tap is under none stays as it is.
    ///
    /// # Errors
    /// When it is not out. What was claimed is nobody's any more, and the tap is put under the device again where it was out for a moment.
    pub(crate) async fn take_out_claimed(&self, volume: &VolumeConfig, claimed_now: Claimed) -> Result<Claimed, ApiError> {
        let Claimed { tap, held, unused, is_out, end } = claimed_now;
        let Some(held) = held else { return Ok(Claimed { tap, held, unused, is_out, end }) };
        let name = &volume.name;
        // † For a helper that ends after this process does: who comes next may have found the tap under the device still.
        let dir = self.volume_path(volume);
        Mark::Leaving.put(&dir, true).map_err(ApiError::internal)?;
        let runtime_dir = self.around.runtime_dir.clone();
        let out = tokio::task::spawn_blocking(move || held.take_out(&runtime_dir).map(|()| held));
        let why = match tokio::time::timeout(LEAVE_WAIT, out).await {
            Ok(Ok(Ok(held))) => {
                // Its table says it from here on, to whoever opens the volume; what is served until then has lost nothing.
                Mark::Leaving.put(&dir, false).map_err(ApiError::internal)?;
                return Ok(Claimed::once_out(tap, Some(held), end).await);
            }
            Ok(Ok(Err(error))) => error,
            Ok(Err(error)) => error.into(),
            Err(_) => anyhow::anyhow!("the requests of its host do not end"),
        };
        // It may be out, or come to be.
        Mark::TrackingLost.put(&dir, true).and_then(|()| Mark::Leaving.put(&dir, false)).map_err(ApiError::internal)?;
        let what = "see the kernel's log, then say the same again";
        Err(ApiError::new(ErrorCode::Conflict, format!("volume {name} stays: {why:#}"), what))
    }

    /// The device of an inserted volume that is served by nobody is on its own disks, which have no other way.
    ///
    /// # Errors
    /// When that is not so.
    pub(crate) async fn leave_one_way(&self, volume: &VolumeConfig) -> anyhow::Result<()> {
        let (runtime_dir, device) = (self.around.runtime_dir.clone(), volume.backing.clone());
        let left = tokio::task::spawn_blocking(move || {
            anyhow::ensure!(change::is_idle(&runtime_dir, &device)?, "an earlier farsided is still changing its table");
            Ok(farside_insert::remove_twin_of(&device)?)
        });
        left.await?.with_context(|| format!("the device of volume {} cannot be taken", volume.name))
    }

    /// Its host does not see the device of an inserted volume at a boot. Whoever says this has it open and locked: † to hide what its host uses would
    /// have it unmounted.
    ///
    /// # Errors
    /// When that cannot be kept.
    pub(crate) async fn hide_device(&self, volume: &VolumeConfig) -> anyhow::Result<()> {
        let (backings, source) = (self.around.backings.clone(), self.source_of(&volume.group));
        let alone = VolumeConfig { insert: false, ..volume.clone() };
        let hidden = tokio::task::spawn_blocking(move || backings.take(&alone, &source));
        hidden.await?.with_context(|| format!("the device of volume {} cannot be kept from its host", volume.name))
    }

    /// Its host sees the device of an inserted volume again.
    pub(crate) async fn give_device_back(&self, volume: &VolumeConfig) {
        if volume.insert {
            let (backings, name) = (self.around.backings.clone(), volume.name.clone());
            let shown = tokio::task::spawn_blocking(move || backings.let_go(&name)).await;
            shown.unwrap_or_else(|error| warn!(volume = %volume.name, %error, "its device stays hidden"));
        }
    }
}

/// Puts a device on its own disks, if nobody uses it, and sees that nobody begins to. The next start finds it there, and
/// compares everything.
pub(super) fn take_out_unused(insertion: Arc<Insertion>, runtime_dir: &Path) -> anyhow::Result<HeldDevice> {
    let mut held = HeldDevice::take(insertion)?;
    held.take_out(runtime_dir)?;
    held.is_given_up = true;
    Ok(held)
}
