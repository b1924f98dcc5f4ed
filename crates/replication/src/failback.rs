//! What a failback decides: the host that was failed over has its disks brought to what its stand-in published since.
//!
//! ```text
//! Held ──► what only the disks hold is kept over one point, while they are brought to it ──► point after point ──► Returning ──► over
//!   │                    │                                                                          │
//!   └── as they are      └── put back: as they were                                                 └── as that point ──► Aborting ──► over
//! ```
//!
//! Owns what is durable of it ([`Course`]), what is known of the disks by a process ([`Known`]), and what follows from both. Invariants:
//! - disks are served only as a point, or as they were when they were taken; never as a part of a point;
//! - † what is overwritten lies in a point or is kept: a first pass keeps, and so does the next one after somebody else wrote to what was a point;
//! - what is said of disks holds only as long as nothing tells of somebody else's writes, and of all of them or of none.
//!
//! It opens no disk and asks nobody: that is the daemon's, which does what is said here under the lock of the disks.

use std::collections::BTreeMap;

use farside_ledger::{Point, State};
use farside_region::{LedgerPosition, Name, RegionSet, Slot, VolumeId, mutation};
use farside_wire::PullPoint;
use serde::{Deserialize, Serialize};

/// A point, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// Where it is.
    pub position: LedgerPosition,
    /// When it was cut, by the source's clock.
    pub wall_ms: i64,
}

impl From<&PullPoint> for At {
    fn from(point: &PullPoint) -> Self {
        Self { position: point.position, wall_ms: point.epoch.wall_ms }
    }
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Stage {
    /// A cutover: what is owed is being published. It ends with the process that began it, and is not kept.
    HandingOver,
    /// All was published, and the disks are held.
    HandedOver {
        /// They are that point.
        at: Option<At>,
    },
    /// The disks are held.
    Held {
        /// The point that they all are, or were before `applying` was begun.
        at: Option<At>,
        /// They are in part that point.
        applying: Option<At>,
    },
    /// They are that point, and served again, or about to be; the history is taken back as long as that point is the newest.
    Returning {
        /// That point.
        at: At,
        /// Others may have them open.
        served: bool,
    },
    /// They are served again as they are.
    Aborting,
}

/// What becomes of what the disks hold and no point does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "branch")]
pub enum Branch {
    /// There is nothing.
    #[default]
    None,
    /// A person gave it up.
    Discarded,
    /// It is to be kept; nothing is overwritten yet.
    Wanted {
        /// The point that the disks were last.
        base: Option<At>,
    },
    /// It is kept.
    Kept {
        /// In the folder of that name.
        id: Name,
        /// Over that point.
        over: At,
        /// How far that is.
        is: Kept,
    },
}

/// How far a branch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// What is in it can be put back, and the disks are then what they were when they were taken.
    Revertible,
    /// It was begun with disks that were in part one point and in part another: what is in it is worth keeping, and nothing to serve.
    Mixed,
    /// All of it is there.
    Whole,
}

impl Branch {
    /// Whether something is left to be kept.
    pub fn is_due(&self) -> bool {
        matches!(self, Self::Wanted { .. } | Self::Kept { is: Kept::Revertible | Kept::Mixed, .. })
    }

    /// The point that the disks were last, where that is known.
    pub fn base(&self) -> Option<&At> {
        match self {
            Self::Wanted { base } => base.as_ref(),
            _ => None,
        }
    }

    /// Whether disks that are no point any more have a branch to begin.
    pub fn may_begin_anew(&self) -> bool {
        matches!(self, Self::None | Self::Kept { is: Kept::Whole, .. })
    }
}

/// A person's word to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// Also while another host may have more to publish.
    pub force: bool,
}

/// What is durable of a failback, as far as anything follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// How far it is.
    pub stage: Stage,
    /// What it was told.
    pub finish: Option<Finish>,
    /// It is given up.
    pub abort: bool,
    /// What the disks hold and no point does.
    #[serde(default)]
    pub branch: Branch,
}

/// How disks that are held go back into service when it is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All that was kept in that branch is put back first.
    PutBack {
        /// Which.
        id: Name,
        /// Over which point it lies.
        over: At,
    },
    /// As they are.
    AsTheyAre {
        /// That point, if they are one.
        at: Option<At>,
    },
}

impl Course {
    /// Of disks that have just been taken.
    pub fn new(branch: Branch) -> Self {
        Self { stage: Stage::Held { at: None, applying: None }, finish: None, abort: false, branch }
    }

    /// How it ends now, if it is given up and may.
    pub fn ending(&self) -> Option<Ending> {
        let Stage::Held { at, applying } = &self.stage else { return None };
        if !self.abort {
            return None;
        }
        if let Branch::Kept { id, over, is: Kept::Revertible } = &self.branch {
            return match mutation::on("what a failback overwrote is not put back") {
                false => Some(Ending::PutBack { id: id.clone(), over: over.clone() }),
                true => Some(Ending::AsTheyAre { at: None }),
            };
        }
        // † A part of a point is served by nobody: the disks are brought to one first.
        let is_whole = applying.is_none() || mutation::on("a part of a point is served");
        is_whole.then(|| Ending::AsTheyAre { at: at.clone() })
    }

    /// How it would end now, if it was given up; `None`: not before the disks are a point.
    pub fn ending_if_aborted(&self) -> Option<Ending> {
        Self { abort: true, ..self.clone() }.ending()
    }

    /// Whether the disks are in service again: what they hold is overwritten no more.
    pub fn is_served(&self) -> bool {
        matches!(self.stage, Stage::Returning { served: true, .. } | Stage::Aborting)
    }

    /// A person says that the disks which are there now are meant. `are_same`: they are surely those that were taken.
    pub fn accepts(&mut self, are_same: bool) {
        // † What was kept is the branch's still, and nothing of what is served is to be kept.
        if self.is_served() {
            return;
        }
        let mut was = None;
        if let Stage::Held { at, .. } | Stage::HandedOver { at } = &mut self.stage {
            was = at.take();
        }
        let was = was.or_else(|| self.branch.base().cloned());
        // † What is on another disk is nothing of the branch that was begun, and where nobody can tell, two branches hold all of it.
        let goes_on = matches!(self.branch, Branch::Kept { .. }) && self.branch.is_due() && are_same;
        if self.branch != Branch::Discarded && !goes_on {
            self.branch = Branch::Wanted { base: was };
        }
    }

    /// All that was kept in that branch is on the disks again, durably. `false`: it was told otherwise meanwhile.
    pub fn is_put_back(&mut self, id: &Name) -> bool {
        let is_it = matches!(&self.branch, Branch::Kept { id: known, is: Kept::Revertible, .. } if known == id);
        let is_over = self.abort && is_it && matches!(self.stage, Stage::Held { .. });
        if is_over {
            (self.branch, self.stage) = (Branch::None, Stage::Aborting);
        }
        is_over
    }

    /// The point that the disks are by what is durable, unless somebody else wrote to them since.
    pub fn says(&self) -> Option<&At> {
        match &self.stage {
            Stage::Held { applying: Some(applying), .. } if mutation::on("a point that was begun is taken for done") => {
                Some(applying)
            }
            Stage::Held { at: Some(at), applying: None } | Stage::Returning { at, .. } => Some(at),
            _ => None,
        }
    }

    /// The point that the disks are, where the newest that is told lies below it, or is another one in its slot. † The store was put back then: what
    /// the disks hold may be the only copy, and nothing of it is kept.
    pub fn is_newer_than(&self, told: &PullPoint) -> Option<&At> {
        let (Stage::Held { at: Some(at), .. } | Stage::Returning { at, .. }) = &self.stage else { return None };
        let (ours, theirs) = (at.position, told.position);
        // A store that passes over what the disks are has it.
        let is_known_there = told.passed_over.is_some_and(|newest| newest >= ours.slot);
        let is_newer = (theirs.slot < ours.slot && !is_known_there) || (theirs.slot == ours.slot && theirs != ours);
        (is_newer && !self.branch.is_due()).then_some(at)
    }

    /// The branch to begin where disks that were a point are none any more: somebody wrote to them, or it cannot be told.
    pub fn begins_anew(&self, have: Option<LedgerPosition>) -> Option<Branch> {
        let Stage::Held { at: Some(at), applying: None } = &self.stage else { return None };
        let is_lost = have.is_none() && self.branch.may_begin_anew() && !mutation::on("what a stranger wrote is not kept");
        is_lost.then(|| Branch::Wanted { base: Some(at.clone()) })
    }

    /// What is kept of disks that are `whole`, if they are a point, over that one; `None`: they hold nothing that it has not.
    pub fn keeps(&self, whole: Option<LedgerPosition>, over: LedgerPosition) -> Option<Kept> {
        // † They are a point that the store has: not only as far as this host knows.
        if whole == Some(over) {
            return None;
        }
        match self.stage {
            Stage::Held { applying: None, .. } => Some(Kept::Revertible),
            _ if mutation::on("what was begun with a part of a point is put back") => Some(Kept::Revertible),
            _ => Some(Kept::Mixed),
        }
    }

    /// Whether the disks may be brought to a point now, as that was looked at: keeping what is overwritten in this branch, or nothing of it.
    pub fn may_apply(&self, keeping: Option<&Name>) -> bool {
        let Stage::Held { applying, .. } = &self.stage else { return false };
        if self.abort && applying.is_none() {
            return false;
        }
        // Else it was discarded, or begun, or given up.
        match (&self.branch, keeping) {
            (Branch::Kept { id, is, .. }, Some(keeping)) => {
                self.branch.is_due() && id == keeping && !(self.abort && *is == Kept::Revertible)
            }
            (branch, None) => !branch.is_due() || mutation::on("a failback overwrites what is still to be kept"),
            (_, Some(_)) => false,
        }
    }

    /// It is begun. `is_known`: the disks were the point that is noted, but for what they are known to lack.
    pub fn applies(&mut self, point: At, is_known: bool) {
        if let Stage::Held { at, applying } = &mut self.stage {
            (*at, *applying) = (at.take().filter(|_| is_known), Some(point));
        }
    }

    /// It is done, of all that is held, or not of all. `branch`: what became of the branch that was looked at before.
    pub fn applied(&mut self, point: At, is_all: bool, (looked, branch): (&Branch, Branch)) {
        if self.branch == *looked {
            self.branch = branch;
        }
        // † One that stays after all, while the others were brought here, is no part of this point.
        self.stage = match is_all {
            true => Stage::Held { at: Some(point), applying: None },
            false => Stage::Held { at: None, applying: Some(point) },
        };
    }

    /// The point from which the disks go back into service, if they are one; `lacks`: some of it is not there yet.
    pub fn goes_back(&self, have: Option<LedgerPosition>, lacks: bool) -> Option<At> {
        let Stage::Held { at: Some(at), applying: None } = &self.stage else { return None };
        (have == Some(at.position) && !lacks).then(|| at.clone())
    }

    /// They do.
    pub fn returns(&mut self, at: At) {
        self.stage = Stage::Returning { at, served: false };
        if self.branch.is_due() {
            self.branch = Branch::None; // they are a point, and nothing was overwritten
        }
    }

    /// Whether disks that are about to be served are still what they were when that was decided; if not, they are held again.
    pub fn is_still(&mut self, have: Option<LedgerPosition>) -> bool {
        let Stage::Returning { at, .. } = &self.stage else { return false };
        if have == Some(at.position) || mutation::on("what is about to be served is not looked at again") {
            return true;
        }
        if self.branch.may_begin_anew() {
            self.branch = Branch::Wanted { base: Some(at.clone()) };
        }
        self.stage = Stage::Held { at: None, applying: None };
        false
    }
}

/// They are that point, but for these regions of some, as far as this process knows. `L`: a set of regions, however it is shared; `S`: what tells
/// whether somebody else wrote to a disk.
#[derive(Clone, Debug)]
pub struct Known<L, S> {
    /// That point.
    pub at: LedgerPosition,
    /// In what they may not be it yet.
    pub lacks: BTreeMap<Name, L>,
    /// As of the last look.
    pub seen: BTreeMap<Name, Option<S>>,
}

impl<L: Default, S: PartialEq> Known<L, S> {
    /// They are that point, as of this look at them.
    pub fn all(at: LedgerPosition, seen: BTreeMap<Name, Option<S>>) -> Self {
        Self { at, lacks: seen.keys().map(|name| (name.clone(), L::default())).collect(), seen }
    }

    /// What is still known of disks as they are seen now. Where nothing tells, that they are locked must do.
    pub fn still(self, seen: &BTreeMap<Name, Option<S>>) -> Option<Self> {
        let is_as_it_was = |name: &Name| self.lacks.contains_key(name) && seen.get(name) == self.seen.get(name);
        (seen.keys().all(is_as_it_was) || mutation::on("a failback does not look for strangers")).then_some(self)
    }

    /// What can be believed of what was noted, in a process that knows nothing yet: only as far as nobody can have written to them since.
    pub fn noted(at: LedgerPosition, then: impl Fn(&Name) -> Option<S>, seen: BTreeMap<Name, Option<S>>) -> Option<Self> {
        let is_as_it_was = |(name, now): (&Name, &Option<S>)| then(name).is_some_and(|then| now.as_ref() == Some(&then));
        let is_so = seen.iter().all(is_as_it_was) || mutation::on("a failback does not look for strangers");
        is_so.then(|| Self::all(at, seen))
    }
}

/// In what a disk may differ from a point. `before`: what it lacks of the point that it is known to be; `touched`: where that point differs from this
/// one. With it whether that was known: otherwise it is all.
pub fn lacks(all: &RegionSet, touched: Option<&RegionSet>, before: Option<&RegionSet>) -> (RegionSet, bool) {
    let (Some(touched), Some(before)) = (touched, before) else { return (all.clone(), false) };
    let mut either = touched.clone();
    if !mutation::on("what a disk lacked of one point is forgotten at the next") {
        either.union_with(before);
    }
    (all.intersection(&either), true)
}

/// Where a point may differ from one of this very history that is not newer; `None`: anywhere.
pub fn touched(state: &State, volume: VolumeId, have: &LedgerPosition, point: &Point) -> Option<RegionSet> {
    let known = state.points().get(&have.slot).is_some_and(|old| old.members.iter().any(|member| member.key.volume == volume));
    if !known || !state.holds(have) || have.slot > point.slot {
        return None;
    }
    Some(state.touched(volume, have.slot, point.slot))
}

/// The newest point that there may be when a disk takes its history back from that one: it, or one up to that slot, which a person passed over for it.
pub fn taken_back_at(newest: Option<LedgerPosition>, at: LedgerPosition, passes: Option<Slot>) -> Option<LedgerPosition> {
    let is_passed = |newest: &LedgerPosition| newest.slot > at.slot && passes.is_some_and(|passes| newest.slot <= passes);
    newest.filter(|newest| *newest == at || is_passed(newest))
}
