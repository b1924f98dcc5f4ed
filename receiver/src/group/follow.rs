//! Followers, as far as the group's thread is concerned: which point is wanted, and the way there.

use std::collections::BTreeSet;
use std::ops::Bound;

use farside_control::PointId;
use farside_control::follower::Follows;
use farside_control::source::LastPoint;
use farside_ledger::{Point, PointMember, State, VolumeState};
use farside_region::{Name, Slot, VolumeId};
use farside_store::{FollowLook, FollowStage, LazyPointReader, StoreError};

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
}

/// What there is for it.
#[derive(Debug)]
pub(crate) enum FollowNext {
    /// No point, for this reason.
    Nothing(String),
    /// It holds what it should.
    There(LastPoint),
    /// This way, to this point.
    Look(Box<FollowLook>, LastPoint),
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
        let chosen = choose(state, volume, ask);
        // † Where points are kept for less than the delay, none would ever be old enough.
        let next = next_due(state, volume, ask);
        let kept = ask.stage.points().chain(chosen.as_ref().ok().map(|point| point.slot)).chain(next).collect();
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
        Ok(FollowNext::Look(Box::new(look), shown))
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

fn volume_of(state: &State, name: &Name) -> Option<VolumeId> {
    state.volumes().find(|(_, volume)| volume.meta().name == *name).map(|(id, _)| id)
}

pub(super) fn shown(state: &State, point: &Point) -> LastPoint {
    let digest = state.digest_at(point.slot).expect("a point's record was replayed");
    LastPoint { id: PointId::new(point.slot.0, &digest.0), cut_wall: wall(point.epoch.wall_ms) }
}

/// The point that one which is always a while behind can hold next, when it is old enough.
fn next_due(state: &State, volume: VolumeId, ask: &FollowAsk) -> Option<Slot> {
    let Follows::Behind { .. } = ask.follows else { return None };
    let above = if let FollowStage::At(at) = ask.stage { Bound::Excluded(at.slot) } else { Bound::Unbounded };
    let is_whole =
        |point: &Point| point.members.iter().any(|m| m.key.volume == volume && !m.degraded) && !ask.avoid.contains(&point.slot);
    let mut newer = state.points().range((above, Bound::Unbounded));
    newer.find(|(_, point)| is_whole(point)).map(|(slot, _)| *slot)
}

/// The point that is wanted, if there is one; in words, why there is none.
fn choose<'s>(state: &'s State, volume: VolumeId, ask: &FollowAsk) -> Result<&'s Point, String> {
    let member = |point: &Point| -> Option<PointMember> { point.members.iter().find(|m| m.key.volume == volume).copied() };
    if let Follows::Point { slot } = ask.follows {
        let point = state.points().get(&Slot(slot)).ok_or_else(|| format!("point {slot} is not there any more"))?;
        return match member(point) {
            None => Err(format!("{} is not in point {slot}", ask.volume)),
            Some(member) if member.degraded => Err(format!("the source could not read all of {} in point {slot}", ask.volume)),
            Some(_) => Ok(point),
        };
    }
    let delay_ms = match ask.follows {
        Follows::Behind { delay_ms } => delay_ms,
        Follows::Newest | Follows::Point { .. } => 0,
    };
    let until_ms = state.age_clock_ms().checked_sub(delay_ms);
    let is_due = |point: &&Point| until_ms.is_some_and(|until_ms| point.age_clock_ms <= until_ms);
    let is_whole = |point: &&Point| member(point).is_some_and(|m| !m.degraded) && !ask.avoid.contains(&point.slot);
    let mut points = state.points_below(None).filter(is_due).filter(is_whole);
    points.next().ok_or_else(|| match delay_ms {
        0 => format!("no point holds all of {} yet", ask.volume),
        _ => format!("no point of {} is old enough yet", ask.volume),
    })
}
