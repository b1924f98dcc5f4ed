//! The source's side of one group.

mod api;
mod status;

use farside_region::{GranuleSet, RegionIndex, VolumeId};

pub use api::{
    Action, Config, DemoteCause, Event, LayerDigestFn, Limits, Nanos, PartRead, Problem, ReadPart, Report, SECOND, Sample,
    SentPart, Start, SwitchDone, SwitchMember, Tick, VolumeSetup,
};
pub use status::{Behind, NotConverging, PointStatus, Progress, RefusedWhy, State, Status, VolumeStatus};

/// Decides for one group of volumes at the protected host. See the crate's head for the rules of calling.
#[derive(Debug)]
pub struct Source {
    config: Config,
}

impl Source {
    /// A group without volumes and without a connection.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Takes one event; appends what is to be done.
    pub fn step(&mut self, now: Nanos, event: Event, actions: &mut Vec<Action>) {
        let _ = (now, event, actions, &self.config);
    }

    /// Whether somebody here may still need this region hot (L2): layers not known published, a compare to come, granules to
    /// send again, unreadable runs. Ask on the thread that steps, right before a clear; the open map, writes in flight and
    /// failed flushes are the shim's to know.
    pub fn mentions(&self, volume: VolumeId, region: RegionIndex) -> bool {
        let _ = (volume, region);
        true
    }

    /// All that a `clean` header must carry for this volume beside the open map (T2): frozen and unpublished layers, what is
    /// to be compared (all its granules), sent again or retried. Only after [`Event::Halt`], with no switch under way.
    pub fn owed(&self, volume: VolumeId) -> GranuleSet {
        let _ = volume;
        GranuleSet::new()
    }

    /// Whether everything is published as of the last tick's samples.
    pub fn settled(&self) -> bool {
        false
    }

    /// Whether an [`Action::Switch`] awaits its [`Event::SwitchDone`].
    pub fn switching(&self) -> bool {
        false
    }

    /// What people are told.
    pub fn status(&self, now: Nanos) -> Status {
        let _ = now;
        Status { connected: false, receiver_trouble: None, volumes: Vec::new(), last_demotion: None, cut_budget_bytes: 0 }
    }
}
