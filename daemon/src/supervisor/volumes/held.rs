//! Volumes that a failback takes out of service, and gives back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use farside_control::source::{VolumeState, VolumeStatus};
use farside_region::Name;
use farside_transport::QuicDialer;
use tokio::time::Instant;
use tracing::warn;

use super::{Claimed, LEAVE_WAIT, clear, names_of};
use crate::config::{Config, GroupConfig, VolumeConfig};
use crate::locked;
use crate::loss::LossNote;
use crate::supervisor::Daemon;

impl Daemon {
    /// What is configured of a group as a whole.
    pub(crate) fn group_config(&self, group: &Name) -> GroupConfig {
        locked(&self.config).group(group)
    }

    /// What is made of the configuration as it is now.
    pub(crate) fn with_config<T>(&self, make: impl FnOnce(&Config) -> T) -> T {
        make(&locked(&self.config))
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.state.path().to_owned()
    }

    /// A way to the receiver, as this host, over so many connections.
    pub(crate) fn dialer(&self, connections: u16) -> QuicDialer {
        let limits = farside_transport::Limits { lanes: connections.into(), ..farside_transport::Limits::default() };
        QuicDialer::new(
            self.identity.clone(),
            self.around.source.clone(),
            self.pin.subscribe(),
            self.around.route.clone(),
            limits,
        )
    }

    /// What is configured of a group.
    pub(crate) fn volumes_of(&self, group: &Name) -> Vec<VolumeConfig> {
        locked(&self.config).volumes.values().filter(|volume| volume.group == *group).cloned().collect()
    }

    /// Has the next start know that the map in a folder is not to be trusted, if that is in this boot.
    pub(super) fn note_loss(&self, dir: &Path) {
        if let Some((group, volume)) = names_of(dir) {
            let id = farside_ledger::volume_id(&self.source_of(&group), &group, &volume);
            if let Err(error) = LossNote::of(&self.around.runtime_dir, id).put() {
                warn!(%volume, %error, "nor can it be noted in the runtime directory");
            }
        }
    }

    /// What its group says of a volume, if it is served.
    pub(crate) async fn served_volume(&self, group: &Name, name: &Name) -> Option<VolumeStatus> {
        self.status_of(group).await?.volumes.into_iter().find(|volume| volume.name == name.as_str())
    }

    /// How a volume is, if it is served.
    pub(crate) async fn volume_state(&self, group: &Name, name: &Name) -> Option<VolumeState> {
        self.served_volume(group, name).await.map(|volume| volume.state)
    }

    /// Lets it go. What goes wrong is tried again by [`Daemon::take_for_failback`].
    pub(crate) async fn leave_for_failback(self: &Arc<Self>, name: &Name, claimed: Claimed) {
        if let Some(gone) = self.leave(name, Some(claimed)) {
            let _ = Self::gone(name, gone, Instant::now() + LEAVE_WAIT).await;
        }
    }

    /// Who is in a group and is not one of these. † The whole group is stopped when it is handed over: he would be served by nobody.
    pub(crate) fn others_in(&self, group: &Name, names: &[Name]) -> Option<Name> {
        let others = |found: &Name| (!names.contains(found)).then(|| found.clone());
        let served = locked(&self.volumes.served).iter().filter(|(_, (of, _))| of == group).find_map(|(name, _)| others(name));
        let adding =
            || locked(&self.volumes.adding).values().find(|volume| volume.group == *group).map(|volume| volume.name.clone());
        let configured = || self.volumes_of(group).iter().find_map(|volume| others(&volume.name));
        served.or_else(adding).or_else(configured)
    }

    /// They have left, and nobody serves them before that is over.
    pub(crate) fn are_held(&self, group: &Name, names: &[Name]) {
        for name in names {
            self.volumes.left(name);
            locked(&self.volumes.unserved).insert(name.clone(), super::Unserved::FailingBack(group.clone()));
        }
    }

    /// The folder of a volume.
    pub(crate) fn volume_path(&self, volume: &VolumeConfig) -> PathBuf {
        self.state.volume_path(&volume.group, &volume.name)
    }

    /// Nobody serves it any more, no device of it is left, and nothing is kept of its history.
    ///
    /// # Errors
    /// When somebody is at it.
    pub(crate) async fn take_for_failback(self: &Arc<Self>, group: &Name, name: &Name) -> anyhow::Result<()> {
        let configured = self.volumes_of(group).into_iter().find(|volume| volume.name == *name);
        if self.volumes.is_served(name) {
            let claimed = match &configured {
                Some(volume) => {
                    let claimed = self.claim_unused(volume).await?;
                    self.take_out_claimed(volume, claimed).await?
                }
                None => self.claim(name).await?,
            };
            self.leave_for_failback(name, claimed).await;
        }
        if self.volumes.is_served(name) || !self.begin_after_others(name, Instant::now() + LEAVE_WAIT).await {
            anyhow::bail!("volume {name} is still being closed");
        }
        let ended = self.end_device((group, name)).await;
        let cleared = ended.and_then(|()| Ok(clear(&self.state.volume_path(group, name))?));
        locked(&self.volumes.unserved).insert(name.clone(), super::Unserved::FailingBack(group.clone()));
        cleared
    }
}
