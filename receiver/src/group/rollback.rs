//! What a host discards that was failed over and goes on with its own disks, as far as the group's thread is concerned: points that another one published.

use farside_control::PointId;
use farside_ledger::{EpochInfo, Point, PointMember, State};
use farside_region::{Generation, LedgerPosition, Name, Slot, VolumeId};
use farside_wire::PullOther;

use super::Group;
use crate::failover::Standing;
use crate::rollback::pin_reasons;

/// Who goes on with its own disks.
#[derive(Clone, Debug)]
pub(crate) struct DiscardAsk {
    /// The host.
    pub(crate) asker: Name,
    /// What it has disks for.
    pub(crate) volumes: Vec<VolumeId>,
}

/// What it discards by that.
#[derive(Clone, Debug)]
pub(crate) struct Discards {
    /// The failover that stands.
    pub(crate) generation: Generation,
    /// Whether nobody else has any of what was asked for since: its end is not noted yet.
    pub(crate) is_over: bool,
    /// The newest point that is whole, and when it was cut.
    pub(crate) point: Option<(LedgerPosition, EpochInfo)>,
    /// Points that are pinned for this, and why; newest first.
    pub(crate) pinned: Vec<(PointId, String)>,
    /// Another claim has published since what is pinned: that one's points would not be known for what is discarded, once a source claims.
    pub(crate) is_of_other_claims: bool,
    /// How many points there are.
    pub(crate) points: u64,
    /// The newest of them, if it is another one.
    pub(crate) newest: Option<Slot>,
    /// Who publishes in its place, and whether it is connected.
    pub(crate) other: Option<PullOther>,
}

impl Discards {
    pub(crate) fn point_id(&self) -> Option<PointId> {
        self.point.map(|(position, _)| id_of(&position))
    }
}

fn id_of(position: &LedgerPosition) -> PointId {
    PointId::new(position.slot.0, &position.digest.0)
}

/// Whether the same claims published both, as far as they have the same volumes.
fn is_of_same_claims(point: &Point, of: &Point) -> bool {
    let is_known = |key| of.members.iter().any(|member: &PointMember| (member.key.volume, member.key.term) == key);
    point.members.iter().all(|member| is_known((member.key.volume, member.key.term)))
}

impl Group {
    /// The newest point that was published since that host was fenced, of which its source could read all, and which holds the volumes that are asked for,
    /// or the newest of those that hold the most of them.
    ///
    /// † Once some volumes were taken back, a point may be of the host that took them: what is told then was published by whoever published what is pinned,
    /// or holds a volume that nobody has taken back.
    pub(super) fn discards(&self, ask: &DiscardAsk) -> Result<Discards, String> {
        // † What is torn away is there all the same: nobody is told that nothing is discarded.
        let state = self.writable().map_err(|error| error.message)?.state();
        let failovers = &self.receiver.failovers;
        let highest = state.highest_generation();
        let Some((generation, _)) = failovers.promotion(&self.names, highest) else {
            let unread = failovers.why_broken(&self.receiver.state_dir, &self.names);
            let unread = unread.map_or_else(String::new, |words| format!(" ({words})"));
            return Err(format!("no failover of {} is known here{unread}: nobody can tell what was published since", self.names));
        };
        if failovers.how_it_stands(&self.names) == Some(Standing::Fencing) {
            return Err(format!("the failover of {} is not through yet: `farside failover --list`", self.names));
        }
        let parted = failovers.parted(&self.names, &ask.asker);
        let since = || state.points_below(None).take_while(|point| Some(point.slot) > parted);
        let reasons = pin_reasons(generation);
        let mut pinned = Vec::new();
        let mut newest_pinned = None;
        for point in since() {
            let own = point.pins.values().filter(|reason| reason.starts_with(&reasons));
            let digest = state.digest_at(point.slot).expect("a point's record was replayed");
            let id = PointId::new(point.slot.0, &digest.0);
            pinned.extend(own.map(|reason| (id, reason.clone())));
            newest_pinned = newest_pinned.or(Some(point).filter(|_| !pinned.is_empty()));
        }
        let is_kept = |point: &Point| point.members.iter().any(|m| is_below(state, m.key.volume, generation));
        let is_theirs = |point: &&Point| {
            highest <= generation || newest_pinned.map_or_else(|| is_kept(point), |of| is_of_same_claims(point, of))
        };
        let lineage = failovers.lineage(&self.names, highest);
        let whole = || since().filter(is_theirs).filter(|point| !point.degraded && lineage.has(point.slot));
        let has = |point: &Point, volume| point.members.iter().any(|member| member.key.volume == volume);
        // † Who asks for none in particular never gets less than what is pinned: the pin would go with it.
        let wanted: Vec<VolumeId> = match newest_pinned {
            Some(pinned) if ask.volumes.is_empty() => pinned.members.iter().map(|member| member.key.volume).collect(),
            None if ask.volumes.is_empty() => state.volumes().map(|(volume, _)| volume).collect(),
            _ => ask.volumes.clone(),
        };
        // † Not the newest of all, where none has all: one volume that nobody published would have the others pinned without most of what they are.
        let lacks = |point: &&Point| wanted.iter().filter(|volume| !has(point, **volume)).count();
        let point = whole().min_by_key(lacks);
        let newest = since().find(is_theirs).map(|newest| newest.slot);
        let position = |point: &Point| {
            let digest = state.digest_at(point.slot).expect("a point's record was replayed");
            (LedgerPosition { slot: point.slot, digest }, point.epoch)
        };
        let is_of_other = newest_pinned.zip(point).is_some_and(|(pinned, point)| !is_of_same_claims(point, pinned));
        Ok(Discards {
            generation,
            is_of_other_claims: is_of_other,
            is_over: highest > generation && !wanted.iter().any(|volume| is_below(state, *volume, generation)),
            pinned,
            points: since().filter(is_theirs).count() as u64,
            newest: newest.filter(|newest| point.is_none_or(|point| point.slot != *newest)),
            point: point.map(position),
            other: self.in_place_of(&ask.asker),
        })
    }

    fn in_place_of(&self, asker: &Name) -> Option<PullOther> {
        let connected = self.sessions.values().map(|session| session.peer()).filter(|peer| peer != asker).min();
        let known = || self.receiver.failovers.stand_in_of(&self.names).flatten().filter(|host| host != asker);
        let is_connected = connected.is_some();
        connected.or_else(known).map(|name| PullOther { name: Some(name), connected: is_connected })
    }
}

fn is_below(state: &State, volume: VolumeId, generation: Generation) -> bool {
    state.volume(volume).is_some_and(|volume| volume.meta().generation <= generation)
}
