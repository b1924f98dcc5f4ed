//! Volumes that are closed by this process to be opened again by it, because somebody ended their device, took their tap out of a
//! device, or made their backing larger. Whoever uses one waits meanwhile, or nobody can.
//!
//! Invariants: who closes one has claimed its end, and opens it again or says that nobody wants it; nothing is closed before its group
//! keeps what the next opening must know.

use std::sync::Arc;

use farside_control::{ApiError, ErrorCode};
use farside_region::Name;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::again::is_given_up;
use super::{AGAIN, AGAIN_MAX, clear, in_time};
use crate::config::VolumeConfig;
use crate::failback::HeldByFailback;
use crate::group::{Ask, Farewell, Leaving, Note};
use crate::growth::Growth;
use crate::locked;
use crate::state_dir::Mark;
use crate::supervisor::Daemon;
use crate::tap::Way;
use crate::volume::{could_be_opened_again, device_of};

/// Why a volume is closed and opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Its device is not served any more, and nobody here did that.
    TapLost,
    /// Its host's device does not rest on its tap, which is made anew.
    Bypassed,
    /// Its backing has become larger.
    Grown(Way),
}

impl Daemon {
    /// Puts the tap of a volume under its device again, which somebody took it from: as soon as the device can carry one, the
    /// volume is closed and opened anew, over the extents and with the size that the device has by then. Ends when that is done,
    /// when a person wants it otherwise, or when it would make no sense.
    pub(in crate::supervisor) async fn insert_again(self: &Arc<Self>, name: &Name) {
        let (mut wait, known) = (AGAIN, self.wanted(name));
        let _tried = self.volumes.tries(name);
        loop {
            tokio::time::sleep(wait).await; // whoever changes a device often does so in several steps
            let Some(volume) = self.wanted(name) else { return self.end_what_is_left(known).await };
            if !volume.insert {
                return;
            }
            let dir = self.state.volume_path(&volume.group, name);
            // Paused, a tap that was taken out is not put back. One that nobody serves may have users who wait, paused or not.
            let stays_out = || self.volumes.is_served(name) && Mark::Paused.is_set(&dir).unwrap_or(false);
            if self.is_stopping() || stays_out() {
                return;
            }
            let (named, folder) = (volume.clone(), dir.clone());
            let ready = move || farside_insert::is_ready(&device_of(&named, &folder));
            let ready = tokio::task::spawn_blocking(ready).await;
            if let Err(why) = ready.map_err(anyhow::Error::from).and_then(|ready| Ok(ready?)) {
                let said = self.ask(name, |id, reply| Ask::TapWaits(id, format!("{why:#}"), reply)).await;
                if said.is_err() && self.volumes.is_served(name) {
                    return; // somebody else put it back
                }
                continue;
            }
            if self.volumes.is_served(name)
                && let Err(why) = self.close(name, Why::Bypassed).await
            {
                let said = self.ask(name, |id, reply| Ask::TapWaits(id, why.to_string(), reply)).await;
                if said.is_err() && self.volumes.is_served(name) {
                    return;
                }
                continue;
            }
            if !self.volumes.begin(name) {
                // Somebody else opens it: that may fail.
                if self.volumes.is_served(name) {
                    return;
                }
                continue;
            }
            let group = volume.group.clone();
            match self.open_configured(volume).await {
                Ok(()) => return,
                Err(error) if is_given_up(&error, true) => {
                    return error!(volume = %name, "not served again: {error:#}");
                }
                Err(error) if is_held(&error, &group) => return, // who holds it has it opened
                // The device may be in the middle of another change.
                Err(error) => warn!(volume = %name, "not served yet: {error:#}"),
            }
            wait = (wait * 2).min(AGAIN_MAX);
        }
    }

    /// † What is not served when it is taken out of the configuration is let go by nobody else: not its folder, nor a device of
    /// its that somebody waits for.
    async fn end_what_is_left(self: &Arc<Self>, known: Option<VolumeConfig>) {
        let is_left = |volume: &VolumeConfig| {
            !self.volumes.is_served(&volume.name) && self.state.volume_path(&volume.group, &volume.name).exists()
        };
        if let Some(volume) = known.filter(is_left) {
            self.open_until_served(volume).await;
        }
    }

    /// Serves a volume anew whose tap was lost. Ends when that is done, or when a person wants it otherwise.
    pub(in crate::supervisor) async fn serve_again(self: &Arc<Self>, name: &Name) {
        if self.is_stopping() || self.volumes.is_leaving(name) {
            return;
        }
        let Some(volume) = self.wanted(name) else { return self.leave_if_unwanted(name) };
        match self.reopen(volume, Why::TapLost).await {
            Ok(()) => {}
            // It is said as long as it is so.
            Err(why) => info!(volume = %name, "not closed and opened again: {why}"),
        }
    }

    /// Closes a volume, and opens it again. An error: it was not closed.
    async fn reopen(self: &Arc<Self>, volume: VolumeConfig, why: Why) -> Result<(), ApiError> {
        self.close(&volume.name, why).await?;
        self.open_until_served(volume).await;
        Ok(())
    }

    /// Closes a volume that is to be opened again, and keeps all that is known of it. An error: it stays as it was. Somebody else is
    /// at it, or uses the tap that is to be made anew, or what it remembers can be kept nowhere.
    async fn close(self: &Arc<Self>, name: &Name, why: Why) -> Result<(), ApiError> {
        if !self.volumes.begin_to_leave(name) {
            return Err(self.under_way(name));
        }
        let left = self.try_to_close(name, why).await.inspect_err(|_| self.stays(name))?;
        self.volumes.left(name);
        left.unwrap_or_else(|error| error!(volume = %name, "{error}"));
        Ok(())
    }

    /// As [`Daemon::close`], of a volume whose end was claimed: nobody else closes or opens it. The outer error: it stays.
    async fn try_to_close(&self, name: &Name, why: Why) -> Result<Result<(), ApiError>, ApiError> {
        let (farewell, is_made_anew) = match why {
            Why::TapLost => {
                // † What is said several times may be heard after the volume was opened again.
                self.ask(name, Ask::TapLost).await?;
                (Farewell::OpenedAgain, false)
            }
            Why::Bypassed => (Farewell::OpenedAgain, true),
            Why::Grown(way) => (Farewell::OpenedLarger, way == Way::NewDevice),
        };
        if is_made_anew {
            self.withdraw_for_another(name).await?;
        }
        let left = self.ask_to_leave(name, farewell).await;
        if left.is_err() && why == Why::Grown(Way::NewDevice) {
            // It has no device any more, and gets one as soon as it can be closed.
            self.note_lost_tap(name, "its device was taken away to be made anew");
        }
        left
    }

    /// A volume that is configured, or is being added and will be.
    fn wanted(&self, name: &Name) -> Option<VolumeConfig> {
        let configured = locked(&self.config).volumes.get(name).cloned();
        configured.or_else(|| locked(&self.volumes.adding).get(name).cloned())
    }

    /// A volume that was about to be closed is served on, unless it was taken out of the configuration meanwhile: who did that was
    /// told that somebody was at it.
    pub(super) fn stays(self: &Arc<Self>, name: &Name) {
        self.volumes.stays(name);
        self.leave_if_unwanted(name);
    }

    fn leave_if_unwanted(self: &Arc<Self>, name: &Name) {
        let (daemon, name) = (self.clone(), name.clone());
        tokio::spawn(async move {
            let _one = daemon.changes.lock().await;
            if daemon.wanted(&name).is_none() {
                daemon.leave(&name, None);
            }
        });
    }

    /// Takes away a tap that nobody uses, so that it is made anew.
    async fn withdraw_for_another(&self, name: &Name) -> Result<(), ApiError> {
        let Leaving { tap, .. } = self.ask(name, Ask::Leaving).await?;
        let volume = name.clone();
        let withdrawn = tokio::task::spawn_blocking(move || tap.claim().and_then(|unused| tap.withdraw(&volume, unused))).await;
        withdrawn
            .map_err(anyhow::Error::from)
            .flatten()
            .map_err(|error| ApiError::new(ErrorCode::Conflict, format!("its tap cannot be made anew: {error:#}"), ""))
    }

    /// Makes a volume as large as its backing has become, as soon as that can be.
    pub(in crate::supervisor) async fn grow(self: &Arc<Self>, name: &Name) {
        let mut wait = AGAIN;
        loop {
            tokio::time::sleep(wait).await; // whoever resizes a disk may do so in several steps
            let Err(why) = self.try_to_grow(name, Way::Takeover).await else { return };
            let said = self.ask(name, |id, reply| Ask::GrowthWaits(id, why.to_string(), reply)).await;
            if said.is_err() || self.is_stopping() {
                return; // it has grown, or is not served any more
            }
            info!(volume = %name, "it does not grow yet: {why}");
            wait = (wait * 2).min(AGAIN_MAX);
        }
    }

    /// Has the devices made anew that are smaller than their volumes could be, where that is the way and nobody uses them. Says
    /// of which volumes that could not be.
    pub(super) async fn make_small_ones_anew(self: &Arc<Self>, until: Instant) -> Vec<String> {
        let served: Vec<Name> = locked(&self.volumes.served).keys().cloned().collect();
        let mut growing = tokio::task::JoinSet::new();
        for name in served {
            let (daemon, volume) = (self.clone(), name.clone());
            let grow = async move {
                let Ok(Growth { way: Way::NewDevice, .. }) = daemon.ask(&volume, Ask::Growth).await else { return Ok(()) };
                let why = daemon.try_to_grow(&volume, Way::NewDevice).await.err().map(|why| why.to_string());
                let Some(why) = why else { return Ok(()) };
                let said = daemon.ask(&volume, |id, reply| Ask::GrowthWaits(id, why.clone(), reply)).await;
                said.unwrap_or_else(|error| debug!(%volume, "{error}"));
                Err(format!("volume {volume} has not grown: {why}"))
            };
            let late = |grown: Result<(), String>| grown.unwrap_or_else(|why| error!("{why}"));
            growing.spawn(async move {
                let grown = in_time(until, grow, late).await;
                grown.map_or_else(
                    || Some(format!("volume {name} has not grown yet: its device is still being made anew")),
                    Result::err,
                )
            });
        }
        growing.join_all().await.into_iter().flatten().collect()
    }

    /// Closes a volume whose backing has grown, and opens it again. An error: it is served as it was, but for a device that was to be
    /// made anew: that is made as soon as the volume can be closed.
    async fn try_to_grow(self: &Arc<Self>, name: &Name, way: Way) -> Result<(), ApiError> {
        let Growth { to, .. } = self.ask(name, Ask::Growth).await?;
        let volume = locked(&self.config).volumes.get(name).cloned();
        let volume = volume.ok_or_else(|| ApiError::internal("it is not configured any more"))?;
        let (config, around) = (volume.clone(), self.around.clone());
        let dir = self.state.volume_path(&volume.group, name);
        let possible = tokio::task::spawn_blocking(move || could_be_opened_again(&config, &dir, &around, to)).await;
        let possible = possible.map_err(anyhow::Error::from).flatten();
        possible.map_err(|error| ApiError::new(ErrorCode::Conflict, format!("{error:#}"), ""))?;
        self.reopen(volume, Why::Grown(way)).await
    }

    fn note_lost_tap(&self, name: &Name, why: &str) {
        if let Ok((_, group, id)) = self.find(name.as_str())
            && let Some(group) = locked(&self.groups).get(&group)
        {
            group.inbox.send(Note::TapLost(id, why.to_owned()));
        }
    }

    /// Opens a volume that was closed for that, and whose host waits, as it was closed or as it is wanted by now.
    pub(in crate::supervisor) async fn open_until_served(self: &Arc<Self>, closed: VolumeConfig) {
        let (name, mut wait) = (&closed.name, AGAIN);
        let _tried = self.volumes.tries(name);
        while !self.is_stopping() {
            if self.volumes.begin(name) {
                let ended = match self.wanted(name) {
                    Some(volume) => self.open_configured(volume).await,
                    None => self.give_up(&closed).await,
                };
                match ended {
                    // What was given up may be wanted again, by who was told that somebody was at it.
                    Ok(()) if !self.volumes.is_served(name) && self.wanted(name).is_some() => continue,
                    Ok(()) => return,
                    // Who holds it has it opened.
                    Err(error) if is_held(&error, &closed.group) && self.wanted(name).is_some() => return,
                    Err(error) => {
                        self.volumes.is_tried_on(name);
                        error!(volume = %name, "not served, and its host waits: {error:#}");
                    }
                }
            }
            if self.volumes.is_served(name) {
                return; // somebody else has opened it, or it is let go
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN_MAX);
        }
    }

    /// Ends what a closed volume left which a reload has taken out of the configuration meanwhile. Whoever uses its device is served
    /// once more: from there it is let go as any other. Its opening was claimed.
    async fn give_up(self: &Arc<Self>, volume: &VolumeConfig) -> anyhow::Result<()> {
        let (name, dir) = (&volume.name, self.state.volume_path(&volume.group, &volume.name));
        let ended = match self.rests_on_tap(volume) {
            true => Err(anyhow::anyhow!("its device rests on its tap")),
            false => self.end_device((&volume.group, name)).await,
        };
        if let Err(why) = ended {
            info!(volume = %name, "it is opened once more to be let go: {why:#}");
            return self.open_configured(volume.clone()).await;
        }
        clear(&dir).unwrap_or_else(|error| warn!(volume = %name, "{error}"));
        self.show_claimed_disk(name).await;
        locked(&self.volumes.unserved).remove(name);
        info!(volume = %name, "not configured any more, and not opened again");
        Ok(())
    }
}

/// Whether the failback of its own group holds a volume, which is opened at the end of that.
fn is_held(error: &anyhow::Error, group: &Name) -> bool {
    matches!(error.downcast_ref(), Some(HeldByFailback(of)) if of == group)
}
