//! The epoch counter of a group and the switch that cuts.

use farside_region::{
    EpochId, GranuleSet, MapId,
    intent::{IntentBlock, PageIndex},
};
use thiserror::Error;

use crate::{IntentOwner, Limits, Queue, Volume, VolumeConfig, Wakes, sync::Arc};

/// What the volumes of a consistency group share: the epoch counter and the side buffer.
#[derive(Debug)]
pub struct Group {}

impl Group {
    /// A group whose volumes have granules of so many bytes.
    pub fn new(_limits: &Limits, _granule_bytes: u64) -> Arc<Self> {
        todo!()
    }

    /// Opens a volume: the shared part, its queues, and the owner of its pages. `slots` returns what both slots of a page hold
    /// on disk, synced. Regions with a bit set are hot; a volume that grew has owner work to do before those are (T12).
    ///
    /// # Panics
    /// When granules have another size than the group's.
    pub fn open_volume(
        self: &Arc<Self>,
        _config: VolumeConfig,
        _wakes: Wakes,
        _map: MapId,
        _slots: &mut dyn FnMut(PageIndex) -> [Box<IntentBlock>; 2],
    ) -> (Arc<Volume>, Vec<Queue>, IntentOwner) {
        todo!()
    }
}

/// What a switch makes of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Preserved by save-before-overwrite.
    Cut,
    /// The host may overwrite it while it is read.
    Pass,
}

/// A volume that takes part in a switch.
#[derive(Debug)]
pub struct Member {
    /// Which.
    pub volume: Arc<Volume>,
    /// What else belongs to the frozen epoch: regions to compare, unreadable runs to try again. Must be hot.
    pub also: GranuleSet,
}

/// A frozen epoch. Keep the sets until its layers are published: they say what may not cool.
#[derive(Debug)]
pub struct Frozen {
    /// The epoch that ended.
    pub epoch: EpochId,
    /// As begun; a cut may have overflowed since (ask [`Switcher::is_cut`]).
    pub kind: Kind,
    /// Its members.
    pub members: Vec<FrozenVolume>,
}

/// One volume of a frozen epoch.
#[derive(Debug)]
pub struct FrozenVolume {
    /// Which.
    pub volume: Arc<Volume>,
    /// What changed in it, with what the switch added.
    pub set: GranuleSet,
}

/// Why a switch cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// The grace of the one before is not over: poll.
    #[error("a switch is under way")]
    InGrace,
    /// The cut of a member was not released yet (at most one per volume).
    #[error("member {0} still has a frozen epoch")]
    StillFrozen(usize),
}

/// The one switcher of a group; owned by its control thread.
#[derive(Debug)]
pub struct Switcher {}

impl Switcher {
    /// The switcher of a group; make one only.
    pub fn new(_group: Arc<Group>) -> Self {
        todo!()
    }

    /// The epoch that is open now.
    pub fn epoch(&self) -> EpochId {
        todo!()
    }

    /// Switches: from here on, requests belong to the next epoch. Returns the epoch that ended. Measure the clock right before
    /// and after. Poll (briefly spinning: parked writers wait for it) until [`Frozen`] comes.
    ///
    /// # Errors
    /// When one is under way, or a member's cut was not released. Nothing happened then.
    pub fn begin(&mut self, _kind: Kind, _members: Vec<Member>) -> Result<EpochId, SwitchError> {
        todo!()
    }

    /// Ends the grace when it can be, and frees what demoted and released cuts held. Call it while [`Switcher::is_busy`].
    pub fn poll(&mut self) -> Option<Frozen> {
        todo!()
    }

    /// Whether a grace or a release is under way.
    pub fn is_busy(&self) -> bool {
        todo!()
    }

    /// Whether the epoch still is a cut on all its members.
    pub fn is_cut(&self, _epoch: EpochId) -> bool {
        todo!()
    }

    /// Gives the cut up: at once for all members (also during its grace). Readers go on as a pass. A no-op for others.
    pub fn demote(&mut self, _epoch: EpochId) {
        todo!()
    }

    /// All readers of the epoch returned [`crate::Next::End`]: is it a cut? After `Cut` it can no longer overflow, and the point
    /// may be announced; its claims stay until [`Switcher::release`] (T10).
    pub fn conclude(&mut self, _epoch: EpochId) -> Kind {
        todo!()
    }

    /// Nothing of the epoch will be read under its claims again.
    pub fn release(&mut self, _epoch: EpochId) {
        todo!()
    }
}
