//! Failovers that the ledger tells of, and no note here: the state directory was lost, or is older than its store.
//!
//! Invariant: what such a one left aside is brought up by nobody who does not name it, and whoever stands in by it is not told to let go of its copy.
//!
//! Nor does a failover fence anybody that an older state directory has waiting, and that the history has gone on without.
//!
//! † Their pins say which point was brought up, and not all that was left aside: one that was for good for a while was pinned anew.

use farside_control::{ApiError, ErrorCode};
use farside_ledger::{State, VolumeState};
use farside_region::{Generation, Name, Slot};
use farside_replication::lineage::Aside;
use farside_store::GroupNames;
use serde::{Deserialize, Serialize};

use super::{ANSWER, Failover, Failovers, PIN_REASONS, Stage, Standing, TakenBack, VERSION, handle, lock, look_within};
use crate::group::{PromotionLook, Wanted};
use crate::process::Receiver;
use crate::state_dir::{StateDir, StateError};

/// The folder of what is known of those that are over.
pub(crate) const KNOWN: &str = "known-promotions";

/// The last one of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lost {
    pub(super) generation: u64,
    /// Nothing that is newer is of the generation before.
    pin: Slot,
    /// What was brought up.
    pub(super) point: Slot,
    /// The newest point, if that was published since.
    since: Option<Slot>,
    /// Its source may have taken its history back.
    is_over: bool,
}

impl Lost {
    /// That one, where nothing was published under a later one.
    fn of(state: &State) -> Option<Self> {
        let highest = Some(state.highest_generation()).filter(|highest| *highest > Generation(1))?;
        let newest = state.points().values().next_back()?.slot;
        let (generation, pin, point) = last_pin(state)?;
        let (since, is_over) = (Some(newest).filter(|newest| *newest > pin), highest.0 > generation);
        (!is_over || since.is_none()).then_some(Self { generation, pin, point, since, is_over })
    }

    /// Whether it may have left that point aside, or one before it, of which no pin tells any more.
    pub(crate) fn may_have_left(&self, point: Slot) -> bool {
        point != self.point && point < self.pin && (point > self.point || self.has_former())
    }

    /// Whether there may have been one before it: the first is of generation 2.
    fn has_former(&self) -> bool {
        self.generation > 2
    }

    /// The same for the one that follows it. † Once that is noted nobody asks the pins.
    pub(super) fn aside(&self) -> impl Iterator<Item = Aside> {
        let below = |slot: Slot| Slot(slot.0.saturating_sub(1));
        // (No point is in slot 0: a claim is before it.)
        let of_former = Some(Aside { point: Slot(0), parted: below(self.point) }).filter(|_| self.has_former());
        of_former.into_iter().chain([Aside { point: self.point, parted: below(self.pin) }])
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        format!(
            "it was failed over (generation {}, to point {}), and this gateway has no note of that: its state directory was lost, or is older than its store",
            self.generation, self.point
        )
    }

    /// What lets a host stand in that may be its stand-in; `None`: its source may have its history back.
    ///
    /// † What that one has may be all that there is of what was written since.
    pub(crate) fn lets_stand_in(&self, names: &GroupNames, host: &Name) -> Option<String> {
        let point = self.since.unwrap_or(self.point);
        (!self.is_over).then(|| {
            format!(
                "{}; on the gateway, if {host} has the copy: farside failover {names} --point {point} --force --stand-in {host}; then, on {host}, of each volume: farside \
                 volume resync NAME --accept fenced",
                self.words()
            )
        })
    }
}

/// Of which failover a pin is.
pub(super) fn generation(reason: &str) -> Option<u64> {
    reason.strip_prefix(PIN_REASONS)?.parse().ok()
}

/// Of the last failover that has one: its generation, the pin, and the point.
fn last_pin(state: &State) -> Option<(u64, Slot, Slot)> {
    let of_pin = |point, (pin, reason): (&Slot, &String)| Some((generation(reason)?, *pin, point));
    let pins = state.points().values().flat_map(|point| point.pins.iter().filter_map(move |pin| of_pin(point.slot, pin)));
    pins.max()
}

/// Up to which generation it is known who promoted what of a group, or took it back; as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    version: u32,
    source: Name,
    group: Name,
    generation: u64,
}

impl Known {
    pub(crate) fn names(&self) -> GroupNames {
        GroupNames { source: self.source.clone(), group: self.group.clone() }
    }
}

impl StateDir {
    /// All. What cannot be read is not known: a follower stops for it, and a person decides.
    pub(super) fn known(&self) -> Vec<Known> {
        let read = self.read_two_deep::<Known>(KNOWN, VERSION).into_iter().filter_map(|(_, read)| read.ok());
        read.filter(|one| one.version == VERSION).collect()
    }
}

impl Failover {
    /// Whether an earlier process began it, and nobody is fenced by it, as far as is noted.
    fn waits_from_before(&self) -> bool {
        self.is_taken_up && self.stage == Stage::Fencing && !self.claimed
    }

    /// From which generation on claims in the ledger may be its own.
    pub(super) fn claims_from(&self) -> u64 {
        self.raised_from.unwrap_or(self.generation)
    }

    /// Whether it may have fenced somebody though that is not noted. `highest`: of the ledger.
    pub(super) fn may_have_claimed(&self, highest: Generation) -> bool {
        highest.0 >= self.claims_from()
    }

    /// It fences under that one. † Noted before anything is claimed under it: what lies above the noted one is somebody else's.
    pub(super) fn raise(&mut self, generation: Generation) {
        self.raised_from = Some(self.claims_from());
        self.generation = generation.0;
    }

    /// Whether that is the generation under which its source takes the history back. `opened`: the highest when this process first opened the ledger.
    ///
    /// † If it was that high by then, the note may be of an older state directory, and that generation another failover, for good, of which no pin tells.
    fn is_followed_by(&self, highest: Generation, opened: Option<Generation>) -> bool {
        let is_seen = opened.is_some_and(|opened| opened.0 <= self.generation);
        is_seen && matches!(self.stage, Stage::Promoted { .. }) && self.generation.checked_add(1) == Some(highest.0)
    }
}

impl Failovers {
    /// The ledger of a group is open, and whole. What it held when this process first saw it stays known.
    pub(crate) fn opens(&self, names: &GroupNames, state: &State) {
        lock(&self.opened).entry(names.clone()).or_insert_with(|| state.highest_generation());
    }

    fn opened(&self, names: &GroupNames) -> Option<Generation> {
        lock(&self.opened).get(names).copied()
    }

    /// The last failover of a group, if nobody has noted it here.
    pub(crate) fn lost(&self, names: &GroupNames, state: &State) -> Option<Lost> {
        let lost = Lost::of(state)?;
        // † One that waits, and that the history has gone on without, may be that very one, as it was before it left anything aside.
        let is_left_behind = self.is_left_behind(names, state);
        let noted = |one: &Failover| {
            if is_left_behind { one.before.as_ref().map(|before| before.generation) } else { Some(one.generation) }
        };
        let noted = lock(&self.all).get(names).and_then(noted);
        let over = self.taken_back(names).as_ref().and_then(TakenBack::brought_up).map(|former| former.generation);
        (noted.max(over) < Some(lost.generation)).then_some(lost)
    }

    /// How the failover of a group stands, with what the ledger says of it; what is known of one that nobody noted here, if that could be found out.
    pub(crate) async fn stands_by_ledger(
        &self,
        receiver: &Receiver,
        names: &GroupNames,
    ) -> Result<Standing, Result<Option<Lost>, String>> {
        let noted = self.how_it_stands(names);
        if let Some(standing) = noted.filter(|_| !lock(&self.all).get(names).is_some_and(Failover::waits_from_before)) {
            return Ok(standing);
        }
        let look = async { look_within(ANSWER, &handle(receiver, names)?, Wanted::Newest).await };
        let look = look.await.map_err(|error| Err(error.message))?;
        match noted {
            Some(_) if look.left_behind => Ok(Standing::LeftBehind(look.generation)),
            Some(standing) => Ok(standing),
            None => Err(Ok(look.lost)),
        }
    }

    /// Whether it is known here how the highest generation of a group came to be: by a failover that is noted, or by its source, which took the history back.
    ///
    /// † Not by its pin alone: one that is for good has none, and what was promoted by it is in use.
    pub(crate) fn is_noted(&self, names: &GroupNames, state: &State) -> bool {
        let highest = state.highest_generation();
        if lock(&self.known).get(names).is_some_and(|known| known.generation >= highest.0) {
            return true;
        }
        let opened = self.opened(names);
        let noted = lock(&self.all).get(names).map(|one| (one.generation, one.is_followed_by(highest, opened)));
        let is_lost = || self.lost(names, state).is_some();
        noted.is_some_and(|(noted, is_followed)| noted >= highest.0 || (is_followed && !is_lost()))
            && !self.is_left_behind(names, state)
    }

    /// One is over, and it is known by whom: that stays when its note is gone. † Not of an older state directory, whose note others followed.
    pub(super) fn knows(&self, state_dir: &StateDir, failover: &Failover, look: &PromotionLook) -> Result<(), StateError> {
        let opened = self.opened(&failover.names());
        if !failover.is_followed_by(look.generation, opened) || look.lost.is_some() {
            return Ok(());
        }
        let (source, group) = (failover.source.clone(), failover.group.clone());
        let known = Known { version: VERSION, source, group, generation: look.generation.0 };
        let before = lock(&self.known).get(&known.names()).cloned();
        state_dir.remember_known(&known, before.as_ref())?;
        lock(&self.known).insert(known.names(), known);
        Ok(())
    }

    /// From which generation on nothing may be claimed: that of a failover that follows another, and waits. Such a claim would be taken for its fence.
    pub(crate) fn nobody_from(&self, names: &GroupNames) -> Option<Generation> {
        let all = lock(&self.all);
        let one = all.get(names)?;
        (one.before.is_some() && !one.claimed).then_some(Generation(one.claims_from()))
    }

    /// Whether the history of a group has gone on without the failover that waits, which an earlier process began.
    ///
    /// † Whoever publishes now is nobody whom a person wanted to be fenced. (After a fence that was only not noted nothing was pinned, nor published;
    /// and nothing is claimed for it above what is noted.)
    pub(crate) fn is_left_behind(&self, names: &GroupNames, state: &State) -> bool {
        let waits = |one: &&Failover| one.waits_from_before();
        let asked = lock(&self.all).get(names).filter(waits).map(|one| (one.claims_from(), one.generation));
        let Some((from, asked)) = asked else { return false };
        let highest = state.highest_generation().0;
        let is_published = |volume: &VolumeState| {
            volume.meta().generation.0 == highest && volume.last_layer().is_some_and(|layer| layer.key.term == volume.term())
        };
        let is_pinned = || last_pin(state).is_some_and(|(generation, ..)| generation >= from);
        highest > asked || (highest >= from && (state.volumes().any(|(_, volume)| is_published(volume)) || is_pinned()))
    }
}

/// Nobody is fenced by it.
pub(crate) fn left_behind(names: &GroupNames, highest: Generation) -> ApiError {
    let message = format!(
        "the history of {names} has gone on since that failover was begun (generation {highest} now; the gateway's state directory may be older than its store), and it \
         fences nobody: `farside failover {names} --abort` gives it up"
    );
    ApiError::new(ErrorCode::Conflict, message, "if it is meant all the same, begin it anew after that")
}
