//! Volumes that could not be opened, and are tried again by themselves: whoever had the disk may be gone by then, the disk or the key
//! may be there, and a host that waits in the device of an earlier daemon has nobody else who would end that.
//!
//! Invariants: one task tries a volume again, and none where somebody else does that anyway; what it finds has been said, it does not
//! say again.

use std::sync::Arc;
use std::time::Duration;

use farside_region::Name;
use tokio::time::Instant;
use tracing::{error, info};

use super::{AGAIN, AGAIN_MAX, Unserved};
use crate::config::VolumeConfig;
use crate::failback::HeldByFailback;
use crate::intent_file::IntentFileError;
use crate::keys::KeyMissing;
use crate::locked;
use crate::supervisor::Daemon;
use crate::volume::AnotherDisk;

/// How long a key is waited for that was not there, before the next look: it is asked for every ten seconds.
const KEY_AGAIN: Duration = Duration::from_secs(5);

/// How often a reload looks whether a volume may be opened that is tried just now.
const BEGIN_POLL: Duration = Duration::from_millis(20);

impl Unserved {
    /// Whether somebody has claimed its opening.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self, Self::Starting | Self::TriedAgain(_))
    }

    /// While it is tried again: why it could not be opened stays to be seen.
    fn while_tried_again(before: Option<&Self>) -> Self {
        match before {
            Some(Self::Failed(why)) => Self::TriedAgain(why.clone()),
            _ => Self::Starting,
        }
    }

    /// Whether this was said already.
    fn says(&self, error: &anyhow::Error) -> bool {
        match self {
            Self::Failed(why) | Self::GivenUp(why) => *why == format!("{error:#}"),
            Self::KeyMissing(_) => error.is::<KeyMissing>(), // it is said by who asks for it
            Self::Starting | Self::TriedAgain(_) | Self::Closing | Self::Unkept(_) | Self::FailingBack(_) => false,
        }
    }
}

/// When something that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Again {
    wait: Duration,
}

impl Again {
    /// `None`: not before a person says so.
    pub(super) fn after(error: &anyhow::Error) -> Option<Self> {
        let wait = if error.is::<KeyMissing>() { KEY_AGAIN } else { AGAIN };
        (!error.is::<AnotherDisk>() && !error.is::<HeldByFailback>()).then_some(Self { wait })
    }

    /// It has failed again.
    fn next(self, error: &anyhow::Error) -> Option<Self> {
        let next = Self::after(error)?;
        Some(if next.wait == AGAIN { Self { wait: (self.wait * 2).min(AGAIN_MAX) } } else { next })
    }
}

/// Whether nobody tries it again before a person says so.
pub(super) fn is_given_up(error: &anyhow::Error, is_inserted: bool) -> bool {
    match is_inserted {
        true => matches!(error.downcast_ref(), Some(IntentFileError::Shrunk { .. })),
        false => error.is::<AnotherDisk>(),
    }
}

impl Daemon {
    /// Tries again to serve a volume that could not be opened, until it is served or nobody wants it any more; if nobody does that
    /// yet. The host of an inserted one goes on without a tap, or waits for one: see [`Daemon::insert_again`].
    pub(super) fn open_again(self: &Arc<Self>, name: &Name, error: &anyhow::Error, is_inserted: bool) {
        if is_given_up(error, is_inserted) || error.is::<HeldByFailback>() || locked(&self.volumes.tried).contains(name) {
            return;
        }
        let (daemon, name) = (self.clone(), name.clone());
        if is_inserted {
            tokio::spawn(async move { daemon.insert_again(&name).await });
            return;
        }
        let Some(again) = Again::after(error) else { return };
        if !locked(&self.volumes.tried_again).insert(name.clone()) {
            return;
        }
        tokio::spawn(async move { daemon.open_when_it_can_be(&name, again).await });
    }

    async fn open_when_it_can_be(self: &Arc<Self>, name: &Name, again: Again) {
        let mut again = Some(again);
        loop {
            if let Some(Again { wait }) = again {
                tokio::time::sleep(wait).await;
            }
            // † Who fails to open it from here on finds nobody who tries again.
            let volume = {
                let mut tried = locked(&self.volumes.tried_again);
                let volume = again.and_then(|_| self.still_to_open(name));
                if volume.is_none() {
                    tried.remove(name);
                }
                volume
            };
            let Some(volume) = volume else { return };
            if volume.backing.starts_with("/dev") && !volume.backing.exists() {
                again = Some(Again { wait: AGAIN }); // it may come later than the start could wait
                continue;
            }
            let before = locked(&self.volumes.unserved).get(name).cloned();
            // Somebody else who opens it may fail for the same reason.
            if !self.volumes.begin_as(name, Unserved::while_tried_again) {
                continue;
            }
            match self.open_configured(volume).await {
                Ok(()) => info!(volume = %name, "it is served at last"),
                Err(error) => {
                    let is_said = before.is_some_and(|before| before.says(&error));
                    if !is_said {
                        error!(volume = %name, "not served: {error:#}");
                    }
                    again = again.and_then(|again| again.next(&error));
                }
            }
        }
    }

    /// Claims the opening of a volume as [`Volumes::begin`] does, after whoever tries that by himself just now.
    pub(super) async fn begin_after_others(&self, name: &Name, until: Instant) -> bool {
        loop {
            if self.volumes.begin(name) {
                return true;
            }
            if !self.volumes.is_tried(name) || Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(BEGIN_POLL).await;
        }
    }

    /// A volume that is to be served and is not.
    fn still_to_open(&self, name: &Name) -> Option<VolumeConfig> {
        let volume = locked(&self.config).volumes.get(name).cloned();
        volume.filter(|_| !self.is_stopping() && !self.volumes.is_served(name))
    }
}
