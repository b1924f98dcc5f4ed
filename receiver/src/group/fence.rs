//! Promotion, as far as the group's thread is concerned: what may be lost by it, and the claims that end what its source may publish.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farside_control::source::LastPoint;
use farside_control::{ApiError, ErrorCode, PointId};
use farside_ledger::{Body, Point, PointMember, Unpin};
use farside_objects::Location;
use farside_region::{Generation, Name, Slot, VolumeId};
use farside_replication::target::Event;
use farside_store::{Dated, GroupStore, StoreError};

use super::follow::shown;
use super::mail::{CohortAnswer, Doubt};
use super::{Group, Place};
use crate::cohort::cuts_of;
use crate::failover::{Lost, left_behind};
use crate::found::Found;

/// How often it is tried again when somebody else wrote at the same moment.
const TRIED_MAX: u32 = 8;

/// Which point a promotion would bring up; of those that failovers before it did not leave aside, unless it is named.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    Newest,
    /// Of those that hold all of these volumes, if there is one; and of which the source could read all, unless it takes degraded ones.
    NewestWith {
        members: Vec<String>,
        takes_degraded: bool,
    },
    Point(Slot),
}

/// The end of what the source of a group may publish.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence {
    /// From here on whoever has a lower one publishes nothing.
    pub(crate) generation: Generation,
    /// Also while the source is connected.
    pub(crate) forced: bool,
    /// Also if what it has sent cannot be published.
    pub(crate) lose_staged: bool,
    /// Only while this point is retained; `None`: any is as good.
    pub(crate) point: Option<Slot>,
}

/// Whether claims that fence may lie, or come to lie, in the slot after the head without being in the state: the answer of a bucket was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastSlot {
    /// None can.
    Decided,
    /// Those of a process before this one, if it had any under way as it ended.
    OfOneBefore,
    /// Ours.
    Ours,
}

/// What came of one that nothing stood against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fenced {
    /// All volumes are claimed under the generation that was asked for.
    Done,
    /// Nobody was fenced by this, and nobody can be but under that one: to be noted, and asked for.
    ///
    /// † Claims may lie there under the one that was asked for, and whose is not known: the source may have taken its history back, or a process before
    /// this one has put them. Were it fenced above what is noted, whoever reads the note later would take the fence for somebody else's claims.
    Above(Generation),
    /// Nobody was fenced yet.
    Waits(Waits),
}

/// For what one that is not forced waits. Who comes back meanwhile is heard, and then it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// For a source that is alive, which may still take so long to come back.
    Silence(Duration),
    /// For what is on its way into the bucket.
    Uploads,
    /// For nothing: something was put before, which may have taken long, and what came meanwhile is to be read first.
    Mail,
}

/// Since when a source that is alive could have shown itself: sessions stay where they end, and come again.
///
/// † That there is no session says nothing of it where this side ended them all a moment ago, or has just begun to take any: its pause before it
/// comes again may be many seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listening {
    since: Instant,
    /// It came, and if it is gone it went by itself.
    heard: bool,
}

impl Listening {
    /// From now on.
    pub(super) fn anew() -> Self {
        Self { since: Instant::now(), heard: false }
    }

    pub(super) fn hears(&mut self) {
        self.heard = true;
    }

    /// For how long still nobody can tell whether it is gone.
    fn left(self, patience: Duration, now: Instant) -> Option<Duration> {
        let left = patience.saturating_sub(now.saturating_duration_since(self.since));
        (!self.heard && !left.is_zero()).then_some(left)
    }
}

/// What a promotion would bring up.
#[derive(Clone, Debug)]
pub(crate) struct PromotionLook {
    /// The highest of all volumes.
    pub(crate) generation: Generation,
    /// The point, if there is one.
    pub(crate) point: Option<Promotable>,
    /// The newest one, also if it was left aside.
    pub(crate) newest: Option<LastPoint>,
    /// Volumes of which the point has nothing, with the newest point of each.
    pub(crate) left_out: Vec<(String, Option<LastPoint>)>,
    /// Whether a point is there that failovers left aside.
    pub(crate) has_aside: bool,
    /// The last failover, if there is no note of it.
    pub(crate) lost: Option<Lost>,
    /// It has gone on without the failover that waits.
    pub(crate) left_behind: bool,
    /// Whether the source said, as its last word, that all is published.
    pub(crate) all_published: bool,
    /// So long it would be waited before anybody is fenced, unless that is forced.
    pub(crate) waits: Option<Duration>,
}

/// A point that may be promoted.
#[derive(Clone, Debug)]
pub(crate) struct Promotable {
    pub(crate) shown: LastPoint,
    pub(crate) slot: Slot,
    pub(crate) degraded: bool,
    /// What was found damaged that it may have.
    pub(crate) damaged: Option<String>,
    /// A failover before was to an older one instead.
    pub(crate) is_aside: bool,
    /// Volumes and their sizes.
    pub(crate) members: Vec<(String, u64)>,
    /// Under which those volumes are claimed now.
    pub(crate) generations: Vec<Generation>,
}

/// What is damaged of a group, as far as is known.
struct KnownBad {
    found: Arc<Found>,
    /// From where on segments of a volume cannot be read.
    since: BTreeMap<VolumeId, Slot>,
    lost: Vec<String>,
}

impl KnownBad {
    /// What a point may have of it.
    fn of(&self, point: &Point) -> Option<String> {
        let has_lost = |m: &PointMember| self.since.get(&m.key.volume).is_some_and(|since| *since <= point.slot);
        // Whoever put them back has it read.
        if self.found.is_sound(point) || !point.members.iter().any(has_lost) {
            return self.found.damage_of(point).map(str::to_owned);
        }
        let first = self.lost.first().map_or("", String::as_str);
        Some(format!("{} segments cannot be read, the first is {first}", self.lost.len()))
    }
}

impl Group {
    /// What would be brought up.
    pub(super) fn promotion_look(&self, wanted: Wanted) -> Result<PromotionLook, ApiError> {
        let store = self.writable()?;
        let state = store.state();
        let newest = state.points().values().next_back();
        // † What one before it was brought up instead of is not what was published since.
        let lineage = self.receiver.failovers.lineage(&self.names, state.highest_generation());
        let mut newest_first = state.points().values().rev().filter(|point| lineage.has(point.slot));
        let name = |point: &Point| {
            let named =
                point.members.iter().filter_map(|m| Some((state.volume(m.key.volume)?.meta().name.to_string(), m.volume_bytes)));
            named.collect::<Vec<_>>()
        };
        let chosen = match &wanted {
            Wanted::Point(slot) => Some(state.points().get(slot).ok_or_else(|| {
                ApiError::not_found("point", &slot.to_string(), "`farside point list` shows those that are kept")
            })?),
            Wanted::Newest => newest_first.next(),
            Wanted::NewestWith { members, takes_degraded } => {
                let mut newest_first = newest_first.filter(|point| *takes_degraded || !point.degraded);
                let has_all = |point: &&Point| {
                    let has = name(point);
                    members.iter().all(|wanted| has.iter().any(|(name, _)| name == wanted))
                };
                newest_first.clone().find(has_all).or_else(|| newest_first.next())
            }
        };
        let bad = self.known_bad(store);
        let has = |point: &Point, id| point.members.iter().any(|m| m.key.volume == id);
        let left_out =
            state.volumes().filter(|(id, volume)| volume.last_layer().is_some() && chosen.is_none_or(|p| !has(p, *id)));
        Ok(PromotionLook {
            generation: state.highest_generation(),
            has_aside: !lineage.is_empty() && state.points().keys().any(|slot| !lineage.has(*slot)),
            lost: self.receiver.failovers.lost(&self.names, state),
            left_behind: self.receiver.failovers.is_left_behind(&self.names, state),
            all_published: self.last_words.hold_of(&self.names.source),
            waits: self.silence_left(),
            newest: newest.map(|point| shown(state, point)),
            left_out: left_out
                .map(|(id, v)| (v.meta().name.to_string(), state.newest_point_of(id).map(|point| shown(state, point))))
                .collect(),
            point: chosen.map(|point| Promotable {
                shown: shown(state, point),
                slot: point.slot,
                degraded: point.degraded,
                damaged: bad.of(point),
                is_aside: !lineage.has(point.slot),
                members: name(point),
                generations: point.members.iter().filter_map(|m| Some(state.volume(m.key.volume)?.meta().generation)).collect(),
            }),
        })
    }

    /// What a group has of cuts of a cohort, with why a failover to one of them would have to be forced.
    pub(super) fn cohort_answer(&self, cohort: &str) -> Result<CohortAnswer, String> {
        let store = match &self.place {
            Place::Here(here) => &here.store,
            Place::Away { words, .. } => return Err(words.clone()),
        };
        // † What is torn away is there all the same, and others would give up what it needs of theirs.
        if store.torn().is_some() {
            return Err("its ledger is torn: farside store check says where".to_owned());
        }
        let state = store.state();
        let cuts = cuts_of(state, cohort);
        let lineage = self.receiver.failovers.lineage(&self.names, state.highest_generation());
        let lost = self.receiver.failovers.lost(&self.names, state);
        let is_aside = |slot| !lineage.has(slot) || lost.is_some_and(|lost| lost.may_have_left(slot));
        let bad = self.known_bad(store);
        let doubt_of = |id: PointId| {
            let point = state.points().get(&Slot(id.slot))?;
            let doubt = Doubt { is_aside: is_aside(point.slot), damaged: bad.of(point) };
            (doubt != Doubt::default()).then_some((id, doubt))
        };
        let doubts = cuts.values().filter_map(|(_, id)| doubt_of(*id)).collect();
        Ok(CohortAnswer { cuts, doubts })
    }

    fn known_bad(&self, store: &GroupStore) -> KnownBad {
        let since = store.state().volumes().filter_map(|(id, _)| Some((id, store.damaged_of(id)?))).collect();
        KnownBad { found: self.found(), since, lost: store.damaged() }
    }

    /// Claims all volumes under that generation, unless they are: whoever claimed them under a lower one publishes nothing any more, and
    /// claims nothing. What was staged is published before, whatever it costs; if it cannot be, nobody is fenced, unless that may be lost.
    ///
    /// Invariant: nothing of the source is heard between the first of the claims and the last.
    ///
    /// † Of one that is not forced, nothing is waited for between the look at who is alive and the claims: a source that comes back meanwhile would
    /// lie in the mailbox, and be fenced behind its back.
    ///
    pub(super) fn fence(&mut self, fence: &Fence) -> Result<Fenced, ApiError> {
        let fenced = self.try_to_fence(fence);
        if !matches!(fenced, Ok(Fenced::Waits(Waits::Uploads | Waits::Mail))) {
            self.uploads.is_over();
        }
        fenced
    }

    fn try_to_fence(&mut self, fence: &Fence) -> Result<Fenced, ApiError> {
        let was_ours = self.slot == LastSlot::Ours;
        if was_ours {
            // † Otherwise a source that has come back stands against asking, and nobody ever knows that it is fenced.
            self.settle()?;
        }
        let state = self.writable()?.state();
        if self.receiver.failovers.is_left_behind(&self.names, state) {
            return Err(left_behind(&self.names, state.highest_generation()));
        }
        if state.fencing_generation(fence.generation) == fence.generation
            && claims_below(self.writable()?, fence.generation).is_none()
        {
            return Ok(Fenced::Done);
        }
        if fence.forced {
            return self.without_uploads(|group| {
                group.publish_all();
                group.claim_all(fence)
            });
        }
        self.refuse_alive()?;
        if let Some(left) = self.silence_left() {
            return Ok(Fenced::Waits(Waits::Silence(left)));
        }
        if let Some(waits) = self.publish_some().or(was_ours.then_some(Waits::Mail)) {
            return Ok(Fenced::Waits(waits));
        }
        self.claim_all(fence)
    }

    /// Publishes what is staged, as long as that brings something: what fails now and then may have failed a moment ago.
    fn publish_all(&mut self) {
        self.spend_all();
        let mut staged = usize::MAX;
        while let Place::Here(here) = &self.place
            && let now = here.target.staged_points()
            && (1..staged).contains(&now)
        {
            staged = now;
            self.happened(Event::Publish);
            self.work();
        }
    }

    /// Requests are not counted for this; from the next tick on they are again.
    fn spend_all(&mut self) {
        if let Place::Here(here) = &mut self.place {
            here.spent = false;
        }
        self.happened(Event::Budget { spent: false });
    }

    /// The same, one step of it, in which no upload is waited for. `None`: nothing is under way, and a step would bring nothing.
    fn publish_some(&mut self) -> Option<Waits> {
        if self.uploads.is_any() {
            return Some(Waits::Uploads);
        }
        let Place::Here(here) = &self.place else { return None };
        let staged = here.target.staged_points();
        if !self.uploads.brings_something(staged) {
            return None;
        }
        self.spend_all();
        self.happened(Event::Publish);
        self.work();
        Some(if self.uploads.is_any() { Waits::Uploads } else { Waits::Mail })
    }

    /// Appends the claims, unless that would lose what is staged.
    fn claim_all(&mut self, fence: &Fence) -> Result<Fenced, ApiError> {
        let Place::Here(here) = &mut self.place else { return self.writable().map(|_| Fenced::Done) };
        // † A claim would make it void.
        if let (lost @ 1.., why) = (here.target.staged_points(), here.target.trouble().unwrap_or("the store is slow, or full")) {
            if !fence.lose_staged {
                let message =
                    format!("{lost} points of {} are here, cannot be published yet, and would be lost: {why}", self.names);
                return Err(ApiError::new(ErrorCode::Unavailable, message, "it is tried again by itself; --lose-staged goes on"));
            }
            tracing::warn!(group = %self.names, points = lost, %why, "a failover loses points that could not be published");
        }
        let generation = fence.generation;
        let above = |store: &GroupStore| Some(store.state().fencing_generation(generation)).filter(|above| *above != generation);
        // † What was just published may have been the claim of a source that takes its history back.
        if let Some(above) = above(&here.store) {
            return Ok(Fenced::Above(above));
        }
        let mut tried = 0;
        let mut claimed = false;
        while let Some(batch) = claims_below(&here.store, generation) {
            // † It is pinned once nothing can be added any more; until now it could be given up. Nobody is fenced for a point that is gone.
            if let Some(gone) = fence.point.filter(|point| !claimed && !here.store.state().points().contains_key(point)) {
                let message = format!("point {gone}, to which {} was to be failed over, is not there any more", self.names);
                let what = "say another --point, or none for the newest; --abort gives the failover up";
                return Err(ApiError::new(ErrorCode::NotFound, message, what));
            }
            self.slot = LastSlot::Ours;
            let appended = here.store.append_all(batch);
            if matches!(appended, Ok(_) | Err(StoreError::Overtaken { .. })) {
                self.slot = LastSlot::Decided;
            }
            match appended {
                Ok(appended) => {
                    claimed = true;
                    if let Some(void) = appended.iter().find(|one| !one.verdict.is_done()) {
                        let message = format!("a claim that promotes {} is void: {:?}", self.names, void.verdict);
                        return Err(ApiError::new(ErrorCode::Conflict, message, "see `farside status` on this gateway"));
                    }
                }
                // † And so may be what a process before this one had put, and nobody knew of.
                Err(StoreError::Overtaken { .. }) if tried < TRIED_MAX => {
                    if let Some(above) = above(&here.store) {
                        return Ok(Fenced::Above(above));
                    }
                    tried += 1;
                }
                Err(error) => {
                    self.store_error(&error);
                    return Err(ApiError::new(ErrorCode::Unavailable, error.to_string(), "it is tried again by itself"));
                }
            }
        }
        // Whoever is connected finds out by asking the ledger; what was under way of the old terms is void.
        self.leave_with(format!("a copy of {} was promoted: generation {}", self.names, generation.0), Duration::ZERO);
        self.enter();
        tracing::warn!(group = %self.names, generation = generation.0, "a copy was promoted: the source before is fenced");
        Ok(Fenced::Done)
    }

    /// Sees to it that the state says whether anybody is fenced: takes the slot in which a claim may come to lie, unless it lies there.
    ///
    /// † Reading the slot would not do: the request may be on its way still.
    pub(super) fn settle(&mut self) -> Result<(), ApiError> {
        if matches!(self.receiver.config().store, Location::Dir(_)) {
            self.slot = LastSlot::Decided; // a directory's answers are not lost
        }
        if self.slot == LastSlot::Decided {
            return self.writable().map(drop);
        }
        self.writable()?;
        let Place::Here(here) = &mut self.place else { return Ok(()) };
        // A record that says nothing.
        let pin = Slot(u64::MAX);
        match here.store.append(Body::Unpin(Unpin { pin })) {
            Ok(_) | Err(StoreError::Overtaken { .. }) => {
                self.slot = LastSlot::Decided;
                Ok(())
            }
            Err(error) => {
                self.store_error(&error);
                let message = format!("whether {} is fenced is not known yet: {error}", self.names);
                Err(ApiError::new(ErrorCode::Unavailable, message, "try again when the store answers"))
            }
        }
    }

    /// Somebody is connected, or was since the failover was begun: a person is asked whether it is to be fenced alive.
    ///
    /// † Whether somebody is connected now says little: when the store is given up, and when the gateway starts, nobody is.
    fn refuse_alive(&self) -> Result<(), ApiError> {
        let what = "--force fences it all the same; --abort gives the failover up";
        let fenced = self.fenced();
        let mut peers = self.sessions.values().map(|session| session.peer());
        if let Some(alive) = peers.find(|peer| fenced.as_ref() != Some(peer)) {
            return Err(ApiError::new(ErrorCode::Refused, format!("{alive} is connected: it is alive"), what));
        }
        match self.receiver.failovers.came_back(&self.names) {
            None => Ok(()),
            Some(alive) => {
                let message = format!("{alive} came back after this failover was begun: it is alive, or was");
                Err(ApiError::new(ErrorCode::Refused, message, what))
            }
        }
    }

    /// For how long still a source that is alive may not have been able to show itself.
    fn silence_left(&self) -> Option<Duration> {
        let fenced = self.fenced();
        let is_fenced = |peer: Name| fenced.as_ref() == Some(&peer);
        let left = self.listening.left(self.receiver.config().fence_after, Instant::now());
        left.filter(|_| self.sessions.values().all(|session| is_fenced(session.peer())))
    }

    /// The source, if a failover that stands has fenced it. † That it is there says nothing of the host that stands in, which a next one would fence.
    pub(super) fn fenced(&self) -> Option<Name> {
        let Place::Here(here) = &self.place else { return None };
        self.receiver
            .failovers
            .has_fenced(&self.names, here.store.state().highest_generation())
            .then(|| self.names.source.clone())
    }

    /// The store, if records can be put into this ledger.
    pub(super) fn writable(&self) -> Result<&GroupStore, ApiError> {
        let away = |words: &str| ApiError::new(ErrorCode::Unavailable, words, "try again when the store answers again");
        match &self.place {
            Place::Here(here) if here.store.torn().is_some() => Err(away("the ledger is torn: see `farside status`")),
            Place::Here(here) => Ok(&here.store),
            Place::Away { words, .. } => Err(away(words)),
        }
    }
}

/// The records that fence, as many as one object takes: all of a group's, but at the end of a run of slots.
fn claims_below(store: &GroupStore, generation: Generation) -> Option<Vec<Dated>> {
    let room = usize::try_from(store.room()).unwrap_or(usize::MAX).max(1);
    let claims = store.state().claims_below(generation).take(room);
    let claims: Vec<Dated> = claims.map(|claim| Dated { body: Body::Claim(claim), ago: Duration::ZERO }).collect();
    (!claims.is_empty()).then_some(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source whose sessions this side ended is alive, and in its pause.
    #[test]
    fn silence_counts_from_when_a_source_could_come_and_not_at_all_where_it_came_and_went() {
        let patience = Duration::from_secs(30);
        let mut listening = Listening::anew();
        let after = |seconds| listening.since + Duration::from_secs(seconds);
        assert_eq!(listening.left(patience, after(0)), Some(patience));
        assert_eq!(listening.left(patience, after(29)), Some(Duration::from_secs(1)));
        assert_eq!((listening.left(patience, after(30)), listening.left(patience, after(90))), (None, None));
        assert_eq!(listening.left(Duration::ZERO, after(0)), None, "nobody waits");
        let now = after(0);
        listening.hears();
        assert_eq!(listening.left(patience, now), None, "it came, and went by itself");
        assert_eq!(Listening::anew().left(patience, now), Some(patience), "and its sessions were ended again");
    }
}
