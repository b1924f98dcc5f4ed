//! Pulls, as far as the group's thread is concerned: which point, and what may differ in it.

use farside_ledger::{EpochInfo, Point, State};
use farside_region::{Generation, LedgerPosition, Name, RegionSet, Slot, VolumeId};
use farside_replication::failback::touched;
use farside_store::LazyPointReader;
use farside_wire::{PULL_MEMBERS_MAX, PULL_RANGES_MAX, PullMember, PullOther};

use super::gone_for_good;
use super::{Group, Place};
use crate::pull::pin_reason;

/// Points that are kept for branches of one host.
const BRANCHES_MAX: usize = 64;

/// What a host that pulls wants to know.
#[derive(Clone, Debug)]
pub(crate) struct PullAsk {
    /// The host.
    pub(crate) asker: Name,
    /// Its connection.
    pub(crate) connection: u64,
    /// What it has disks for.
    pub(crate) volumes: Vec<VolumeId>,
    /// Which point.
    pub(crate) wanted: PullWanted,
}

/// Which point a host wants.
#[derive(Clone, Debug)]
pub(crate) enum PullWanted {
    /// The newest, but for those that were passed over by a failover to an older one; `have`: what its disks are.
    Newest { have: Option<LedgerPosition> },
    /// The newest from before the failover; `over`: no other than this one. `pins`: it is to be kept for that branch. `leaves`: it is to be kept no
    /// more, and nothing of it is wanted.
    Fork { over: Option<LedgerPosition>, pins: Option<Name>, leaves: bool },
}

/// What it is told.
#[derive(Debug)]
pub(crate) struct PullLook {
    pub(crate) position: LedgerPosition,
    pub(crate) epoch: EpochInfo,
    pub(crate) generation: Generation,
    pub(crate) promotion: Option<Generation>,
    pub(crate) is_since: bool,
    pub(crate) passed_over: Option<Slot>,
    pub(crate) other: Option<PullOther>,
    pub(crate) members: Vec<Pullable>,
}

/// A volume of the point.
#[derive(Debug)]
pub(crate) struct Pullable {
    pub(crate) told: PullMember,
    pub(crate) reader: LazyPointReader,
}

impl Group {
    /// The newest point of which the source could read all, and which holds the volumes that are asked for, or of those from before the failover; which is
    /// kept for that host from here on. As long as nothing was published since a failover to an older point, that is the newest.
    pub(super) fn pull(&self, ask: &PullAsk) -> Result<PullLook, String> {
        let here = match &self.place {
            Place::Here(here) => here,
            Place::Away { words, .. } => return Err(words.clone()),
        };
        if let Some(winner) = self.receiver.failovers.committed(&self.names).filter(|_| ask.asker == self.names.source) {
            return Err(gone_for_good(&self.names, &winner));
        }
        let state = here.store.state();
        // † What came after a point that was brought up, and before that failover, is what it was brought up instead of.
        let lineage = self.receiver.failovers.lineage(&self.names, state.highest_generation());
        let stands = |point: &Point| lineage.has(point.slot);
        let any = |_: &Point| true;
        // † One that lacks a volume is of no use to who has its disk, whatever is newer. Where none has all, what they lack is said of the newest.
        let newest_below = |below: Option<Slot>, counts: &dyn Fn(&Point) -> bool| {
            let whole = || state.points_below(below).filter(|point| !point.degraded && counts(point));
            let has = |point: &Point, volume| point.members.iter().any(|member| member.key.volume == volume);
            let has_all = |point: &&Point| ask.volumes.iter().all(|volume| has(point, *volume));
            whole().find(has_all).or_else(|| whole().next())
        };
        let point = match &ask.wanted {
            PullWanted::Newest { .. } => {
                // † The newest may be what it was brought up instead of.
                if let Some(words) = self.receiver.failovers.why_broken(&self.receiver.state_dir, &self.names) {
                    return Err(format!("which points of {} are its history is not known: {words}", self.names));
                }
                let newest = newest_below(None, &stands);
                let lost = self.receiver.failovers.lost(&self.names, state);
                if let Some((lost, newest)) = lost.zip(newest).filter(|(lost, newest)| lost.may_have_left(newest.slot)) {
                    return Err(format!(
                        "point {} of {names} may have been left aside: {}; on the gateway, so that it is known: farside failover {names} --point POINT --force",
                        newest.slot,
                        lost.words(),
                        names = self.names
                    ));
                }
                newest.ok_or_else(|| format!("{} has no point that is whole", self.names))?
            }
            PullWanted::Fork { over: None, .. } => {
                let parted = self.receiver.failovers.parted(&self.names, &ask.asker).ok_or_else(|| {
                    format!(
                        "no failover of {} is known here: nobody can tell from where its disks went their own way",
                        self.names
                    )
                })?;
                // Of what its disks were, which is whatever was published of them.
                let newest = newest_below(Some(Slot(parted.0 + 1)), &any);
                newest.ok_or_else(|| format!("{} has no point from before its failover any more that is whole", self.names))?
            }
            PullWanted::Fork { over: Some(over), pins, .. } => {
                if let Some(branch) = pins {
                    self.may_pin(state, &ask.asker, branch)?;
                }
                let known = state.points().get(&over.slot).filter(|point| !point.degraded && state.holds(over));
                known.ok_or_else(|| format!("{} does not keep point {} any more", self.names, over.slot))?
            }
        };
        let have = match ask.wanted {
            PullWanted::Newest { have } => have,
            PullWanted::Fork { .. } => None,
        };
        // † Its disks may be the only copy of what a store that was put back has not: nobody brings them to a point of another history unasked.
        if let Some(have) = &have
            && !here.store.went_through(have).map_err(|error| error.to_string())?
        {
            // It may be in what cannot be read.
            if let Some(torn) = here.store.torn() {
                return Err(self.is_torn(torn));
            }
            return Err(format!(
                "the ledger of {} never went through point {}, which the disks of {} are: its store was put back to an older one, or is another one. Have \
                 the newer store back; or on {2}: `farside failback {group} --finish --force` serves the disks as they are, and `farside failback {group} \
                 --accept-disks` goes on with what this store has, if it can be said what to keep the rest over, and keeps what only the disks hold as a \
                 branch (unless --discard-branch was said); after that only --abort serves them as they are",
                self.names,
                have.slot,
                ask.asker,
                group = self.names.group
            ));
        }
        if point.members.len() > PULL_MEMBERS_MAX {
            return Err(format!("point {} has more volumes than can be pulled at once", point.slot));
        }
        let digest = state.digest_at(point.slot).expect("a point's record was replayed");
        // † Another connection of that host may be bringing its disks up: what that one needs is not let go of with an old branch.
        if !matches!(ask.wanted, PullWanted::Fork { leaves: true, .. }) {
            let needed = have.iter().map(|have| have.slot).chain([point.slot]);
            self.receiver.followers.hold(&self.names, (&ask.asker, ask.connection), needed.collect());
        }
        let mut members = Vec::new();
        for member in &point.members {
            let volume = member.key.volume;
            let reader = here.store.reader_of_kept(point.slot, volume).map_err(|error| error.to_string())?;
            let meta = state.volume(volume).ok_or_else(|| format!("volume {volume} was never claimed"))?.meta().clone();
            let touched = have.and_then(|have| touched(state, volume, &have, point));
            let told = PullMember { meta, volume_bytes: member.volume_bytes, touched };
            members.push(Pullable { told, reader });
        }
        let ranges = |members: &[Pullable]| {
            members.iter().filter_map(|one| one.told.touched.as_ref()).map(RegionSet::range_count).sum::<usize>()
        };
        if ranges(&members) > PULL_RANGES_MAX {
            members.iter_mut().for_each(|one| one.told.touched = None);
        }
        let (promotion, parted) = self.receiver.failovers.promotion(&self.names, state.highest_generation()).unzip();
        // † Not by whose term the newest claim is: a host that stands in claims anew whenever it is started.
        let is_since = match parted.flatten() {
            Some(parted) => point.slot > parted,
            None => {
                point.members.iter().all(|member| state.volume(member.key.volume).is_some_and(|v| v.term() == member.key.term))
            }
        };
        let newest = state.points().values().next_back().map(|newest| newest.slot);
        Ok(PullLook {
            position: LedgerPosition { slot: point.slot, digest },
            epoch: point.epoch,
            generation: state.highest_generation(),
            promotion,
            is_since,
            passed_over: newest.filter(|newest| *newest > point.slot),
            other: self.other_than(&ask.asker, state),
            members,
        })
    }

    /// Whether a host may have one more point kept for its branches: retention frees nothing of what is pinned.
    fn may_pin(&self, state: &State, asker: &Name, branch: &Name) -> Result<(), String> {
        if !self.receiver.failovers.stands(&self.names) {
            return Err(format!(
                "{} was not failed over, as far as is known here: nothing is pinned for a branch of it",
                self.names
            ));
        }
        let (of_asker, this) = (pin_reason(asker, ""), pin_reason(asker, branch.as_str()));
        let mut pins =
            state.points().values().flat_map(|point| point.pins.values()).filter(|reason| reason.starts_with(&of_asker));
        if pins.clone().all(|reason| *reason != this) && pins.nth(BRANCHES_MAX - 1).is_some() {
            return Err(format!(
                "{BRANCHES_MAX} branches of {asker} have points pinned: `farside branch remove` there lets go of one"
            ));
        }
        Ok(())
    }

    /// Whoever else may have more to publish. Invariant: a host that stands in, and did not say that it owes nothing, is never forgotten, whatever
    /// became of its connection, of this process, or of what this receiver had noted.
    fn other_than(&self, asker: &Name, state: &State) -> Option<PullOther> {
        let peers = self.sessions.values().map(|session| session.peer());
        if let Some(name) = peers.filter(|peer| peer != asker).min() {
            return Some(PullOther { name: Some(name), connected: true });
        }
        let is_left_behind = self.receiver.failovers.is_left_behind(&self.names, state);
        match self.receiver.failovers.stand_in_of(&self.names).filter(|_| !is_left_behind) {
            Some(stand_in) => {
                let owes = stand_in.filter(|host| host != asker && !self.last_words.hold_of(host));
                owes.map(|name| PullOther { name: Some(name), connected: false })
            }
            // Somebody was promoted, and this receiver does not know of it.
            None => (state.highest_generation() > Generation(1)).then_some(PullOther { name: None, connected: false }),
        }
    }
}
