//! Followers, as far as the group's thread is concerned: which point is wanted, and the way there.

use std::collections::BTreeSet;

use farside_control::PointId;
use farside_control::follower::Follows;
use farside_control::source::LastPoint;
use farside_ledger::{Point, State, VolumeState};
use farside_region::{Generation, Name, Slot, VolumeId};
use farside_store::{FollowLook, FollowStage, LazyPointReader, StoreError, Wanted};

use super::{Group, Place};
use crate::keys;
use crate::status::wall;

/// What a follower wants.
#[derive(Clone, Debug)]
pub(crate) struct FollowAsk {
    /// Who asks.
    pub(crate) follower: Name,
    pub(crate) volume: Name,
    pub(crate) follows: Follows,
    /// Points that could not be read.
    pub(crate) avoid: BTreeSet<Slot>,
    /// What its target holds.
    pub(crate) stage: FollowStage,
    /// Look at the target also if it holds what it should.
    pub(crate) again: bool,
    /// Under which generation an earlier process left it on its way.
    pub(crate) left_under: Option<Generation>,
}

impl FollowAsk {
    /// One that avoids nothing.
    pub(crate) fn new(follower: &Name, volume: Name, follows: Follows, stage: FollowStage) -> Self {
        Self { follower: follower.clone(), volume, follows, avoid: BTreeSet::new(), stage, again: false, left_under: None }
    }

    /// The points that are kept for it: what it holds, what it is to hold, and what it will.
    pub(crate) fn points(&self, state: &State) -> BTreeSet<Slot> {
        match volume_of(state, &self.volume) {
            Some(volume) => self.look(state, volume).1,
            None => self.stage.points().collect(),
        }
    }

    /// What it is to hold, and the points that are kept for it.
    fn look<'s>(&self, state: &'s State, volume: VolumeId) -> (Result<&'s Point, String>, BTreeSet<Slot>) {
        let wanted = wanted(self.follows);
        let chosen = wanted.find(state, volume, &self.avoid);
        // † Where points are kept for less than the delay, none would ever be old enough.
        let held = if let FollowStage::At(at) = self.stage { Some(at.slot) } else { None };
        let next = wanted.next_due(state, volume, held, &self.avoid);
        let kept = self.stage.points().chain(chosen.as_ref().ok().map(|point| point.slot)).chain(next).collect();
        (chosen, kept)
    }
}

/// What there is for it.
#[derive(Debug)]
pub(crate) enum FollowNext {
    /// No point, for this reason.
    Nothing(String),
    /// It holds what it should.
    There(LastPoint),
    /// This way, to this point, under this generation.
    Look(Box<FollowLook>, LastPoint, Generation),
    /// A copy was promoted since under this one, and nobody here noted which.
    Outlived(Generation),
}

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    /// The store is away.
    #[error("{0}")]
    Away(String),
    /// The volume is encrypted, and this gateway was not given its key.
    #[error("{0}")]
    NoKey(String),
    /// The store's.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Group {
    /// The way to the point that a follower should hold; which is kept from here on, and so is what it holds.
    pub(super) fn follow(&mut self, ask: &FollowAsk) -> Result<FollowNext, FollowError> {
        let here = match &self.place {
            Place::Here(here) => here,
            Place::Away { words, .. } => return Err(FollowError::Away(words.clone())),
        };
        let state = here.store.state();
        let Some(volume) = volume_of(state, &ask.volume) else {
            return Ok(FollowNext::Nothing(format!("{} has no volume {} yet", self.names, ask.volume)));
        };
        let highest = state.highest_generation();
        if ask.left_under.is_some_and(|left| left < highest) && !self.receiver.failovers.is_noted(&self.names, state) {
            return Ok(FollowNext::Outlived(highest));
        }
        let (chosen, kept) = ask.look(state, volume);
        self.receiver.followers.keep(&ask.follower, kept);
        let chosen = match chosen {
            Ok(point) => point,
            Err(why) => return Ok(FollowNext::Nothing(why)),
        };
        // Also of one that is where it should be: it could not be promoted.
        let meta = state.volume(volume).map(VolumeState::meta);
        if let Some(words) = meta.and_then(|meta| keys::none_given(&self.receiver.config(), &self.names, meta)) {
            return Err(FollowError::NoKey(words));
        }
        let shown = shown(state, chosen);
        if let FollowStage::At(at) = ask.stage
            && at.slot == chosen.slot
            && state.holds(&at)
            && !ask.again
        {
            return Ok(FollowNext::There(shown));
        }
        let look = here.store.follow_look(chosen.slot, volume, &ask.stage)?;
        Ok(FollowNext::Look(Box::new(look), shown, highest))
    }

    /// Opens the point that a follower holds, to compare with.
    pub(super) fn follow_base(&self, volume: &Name, point: Slot) -> Result<LazyPointReader, FollowError> {
        match &self.place {
            Place::Here(here) => {
                let unknown = || StoreError::NoSuchVolume { volume: volume.to_string(), known: String::new() };
                let volume = volume_of(here.store.state(), volume).ok_or_else(unknown)?;
                Ok(here.store.reader_of_kept(point, volume)?)
            }
            Place::Away { words, .. } => Err(FollowError::Away(words.clone())),
        }
    }
}

fn wanted(follows: Follows) -> Wanted {
    match follows {
        Follows::Newest => Wanted::Newest,
        Follows::Behind { delay_ms } => Wanted::Behind(delay_ms),
        Follows::Point { slot } => Wanted::Point(Slot(slot)),
    }
}

fn volume_of(state: &State, name: &Name) -> Option<VolumeId> {
    state.volumes().find(|(_, volume)| volume.meta().name == *name).map(|(id, _)| id)
}

pub(super) fn shown(state: &State, point: &Point) -> LastPoint {
    let digest = state.digest_at(point.slot).expect("a point's record was replayed");
    LastPoint { id: PointId::new(point.slot.0, &digest.0), cut_wall: wall(point.epoch.wall_ms) }
}
