//! What a target does next that is kept equal to points by a store alone, without a gateway: for `farside store follow` and the simulator.
//!
//! Invariants:
//! - what the target holds counts only as a position, slot and digest, of the ledger that is there now: † another history may have a point in the
//!   same slot;
//! - nobody keeps the point that the target holds: that it is gone is no damage, and no trouble.

use farside_ledger::State;
use farside_region::{LedgerPosition, Slot, VolumeId, mutation};

use crate::error::{Result, StoreError};
use crate::follower::{FollowLook, FollowStage};
use crate::lazy::LazyPointReader;
use crate::reader::GroupReader;
use crate::wanted::{Tried, Wanted};

/// The mistake of not asking which history a position is of.
pub(crate) const OF_ANY_HISTORY: &str = "a cascade goes on from a position that the store does not hold";

/// What is next.
#[derive(Debug)]
pub enum Next {
    /// There is no point for it, in words.
    Nothing(String),
    /// The target holds the point that is wanted.
    There(LedgerPosition),
    /// The way to it.
    Way(Box<FollowLook>),
}

impl GroupReader {
    /// † What cannot be read is not gone: from a ledger that ends before what the target holds, it would be taken back.
    ///
    /// # Errors
    /// [`StoreError::LedgerTorn`].
    pub fn refuse_to_go_back(&self, stage: &FollowStage) -> Result<()> {
        let ends_before = || stage.newest().is_some_and(|held| held >= self.state().next_slot());
        self.torn().filter(|_| ends_before()).map_or(Ok(()), |torn| Err(torn.error(self.names())))
    }

    /// What is next for a target of a volume that was left at `stage`.
    ///
    /// # Errors
    /// Those of [`GroupReader::follow_look`].
    pub fn next_way(&self, volume: VolumeId, wanted: Wanted, tried: &Tried, stage: &FollowStage) -> Result<Next> {
        let slot = match wanted.find(self.state(), volume, &tried.avoid()) {
            Ok(point) => point.slot,
            Err(why) => return Ok(Next::Nothing(why)),
        };
        match stage {
            FollowStage::At(at) if at.slot == slot && is_held(self.state(), at) => Ok(Next::There(*at)),
            _ => Ok(Next::Way(Box::new(self.follow_look(slot, volume, stage)?))),
        }
    }

    /// Opens the point that a target holds; `None`: it was given up, whether before this was asked or meanwhile.
    ///
    /// # Errors
    /// Those of [`GroupReader::point_reader_lazily`].
    pub fn held_point(&self, slot: Slot, volume: VolumeId) -> Result<Option<LazyPointReader>> {
        match self.point_reader_lazily(slot, volume) {
            Err(StoreError::NoSuchPoint { .. } | StoreError::PointDeleted { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// The same for [`Follower::advance`](crate::Follower::advance), and to open a point again in the middle.
    ///
    /// # Errors
    /// [`StoreError::NoSuchPoint`] also where it went meanwhile; those of [`GroupReader::point_reader_lazily`].
    pub fn base(&self, slot: Slot, volume: VolumeId) -> Result<LazyPointReader> {
        let gone = || StoreError::NoSuchPoint { point: slot.to_string(), why: "it was given up".to_owned() };
        self.held_point(slot, volume)?.ok_or_else(gone)
    }
}

/// Whether a ledger holds a position that a target was left at.
pub(crate) fn is_held(state: &State, at: &LedgerPosition) -> bool {
    state.holds(at) || mutation::on(OF_ANY_HISTORY)
}

impl StoreError {
    /// Whether what was read was taken away meanwhile: the ledger says by what, and there is another way by then.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::PointDeleted { .. } | Self::PartMerged { .. } | Self::NoSuchPoint { .. })
    }

    /// Whether a point could not be read that is retained: a newer one may be whole. See [`Tried`].
    pub fn is_unread(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Incomplete { .. } | Self::Degraded { .. })
    }
}
