//! Points that somebody asks for: with a title, and with the group's applications quiesced around the cut; or with its writes held, for a
//! cut together with groups of other hosts, of which one that fails is not tried again: whoever conducts it begins another.
//!
//! Invariants:
//! - A point is called application-consistent only if the driver said, *after* the switch, that everything was quiet from before the
//!   switch until after it ([`Event::Resumed`](super::Event::Resumed)). Until that is known its end is not said.
//! - Each [`Action::Quiesce`] that was answered with success is followed by exactly one [`Action::Resume`], in the same step as the
//!   switch at the latest: nobody is kept quiet while something is waited for.
//! - It holds all volumes of the group. Nobody is quieted before all of them could be cut at once.
//!
//! ```text
//! Due ─► Quiescing ─► Switching ─► Cut ─► published: over
//!  ▲ │       │failed                │
//!  │ └───────┴──────► Switching     │ not taken, demoted, lost
//!  └────────────────────────────────┘ again after a while
//! ```

use std::collections::VecDeque;

use farside_ledger::{CohortCut, Consistency, Label, LayerKind};
use farside_region::{EpochId, Name, VolumeId, mutation};
use farside_wire::Features;

use super::api::{Action, Nanos, Report};
use super::status::PointStatus;
use super::volume::Volume;
use super::{Epoch, Kind, Link, Phase, Source};

/// So many may wait; one more is refused.
const WISHES_MAX: usize = 16;
/// The pause before another try doubles so often at most.
const DOUBLINGS_MAX: u32 = 6;

/// A point that somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Comes back in what is said of it.
    pub id: u64,
    /// What it is to be called; may be empty.
    pub title: String,
    /// Whether something is to be quiet around its cut, and what.
    pub around: Around,
}

/// What a wished cut is taken in the middle of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Around {
    /// Nothing.
    Nothing,
    /// The group's applications are quiesced.
    Hooks,
    /// The group's writes are held, as are those of the other groups of that cut.
    Cohort(CohortCut, Name),
}

impl Around {
    fn is_cohort(&self) -> bool {
        matches!(self, Self::Cohort(..))
    }
}

/// How a wish gets on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WishStatus {
    /// Which.
    pub id: u64,
    /// What it is to be called.
    pub title: String,
    /// Whether it is a cut together with groups of other hosts.
    pub is_of_cohort: bool,
    /// What is going on.
    pub state: WishState,
    /// How often it was tried in vain.
    pub tries: u32,
}

/// What a wish waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WishState {
    /// For these volumes, which cannot be cut now; none: for its turn, or for a moment when all can be.
    Waiting(Vec<Name>),
    /// For applications to be quiet.
    Quiescing,
    /// For its cut to be read, sent and published.
    Cut,
}

#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// The first is seen to.
    waiting: VecDeque<Wished>,
    /// Volumes of the group that are not here.
    lacking: Vec<Name>,
}

#[derive(Debug)]
struct Wished {
    wish: Wish,
    stage: Stage,
    tries: u32,
    /// Why its hooks failed: it is cut without them.
    failed: Option<String>,
    /// Nobody waits for it any more: what is under way goes on, and is not tried again.
    is_unwanted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Due { not_before: Nanos },
    Quiescing,
    Switching,
    Cut(EpochId),
}

/// What is to be said of a cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Labelled {
    #[default]
    Not,
    /// As soon as it is known whether applications were quiet all along.
    Pending,
    Said(Box<Label>),
}

impl Wished {
    fn label(&self) -> Labelled {
        match &self.failed {
            None if self.wish.around != Around::Nothing => Labelled::Pending,
            failed => {
                let why = failed.as_deref().unwrap_or_default();
                Labelled::Said(Box::new(Label::new(Consistency::Crash, &self.wish.title, why)))
            }
        }
    }
}

impl Source {
    pub(super) fn wish(&mut self, now: Nanos, wish: Wish, out: &mut Vec<Action>) {
        let why = match self.phase {
            Phase::Running if self.wishes.waiting.len() < WISHES_MAX => {
                let stage = Stage::Due { not_before: now };
                let wished = Wished { wish, stage, tries: 0, failed: None, is_unwanted: false };
                return self.wishes.waiting.push_back(wished);
            }
            Phase::Running => format!("{WISHES_MAX} points were asked for already"),
            Phase::Draining | Phase::Halted => STOPPING.to_owned(),
        };
        out.push(Action::Report { volume: None, what: Report::WishDropped { wish: wish.id, why } });
    }

    /// Nobody waits for it any more. One that is under way goes on.
    pub(super) fn forget_wish(&mut self, id: u64) {
        self.wishes.waiting.retain(|w| w.wish.id != id || !matches!(w.stage, Stage::Due { .. }));
        self.wishes.waiting.iter_mut().filter(|w| w.wish.id == id).for_each(|w| w.is_unwanted = true);
    }

    /// These volumes are of the group, and not here: no point is one of all volumes without them.
    pub(super) fn lacks(&mut self, volumes: Vec<Name>) {
        self.wishes.lacking = volumes;
    }

    /// A stop takes nobody's applications from him.
    pub(super) fn drop_wishes(&mut self, out: &mut Vec<Action>) {
        let due = |w: &Wished| matches!(w.stage, Stage::Due { .. } | Stage::Quiescing);
        let (dropped, left) = std::mem::take(&mut self.wishes.waiting).into_iter().partition(due);
        self.wishes.waiting = left;
        let dropped: VecDeque<Wished> = dropped;
        for Wished { wish, .. } in dropped {
            out.push(Action::Report { volume: None, what: Report::WishDropped { wish: wish.id, why: STOPPING.to_owned() } });
        }
    }

    /// Whether no cut and no pass is to begin now: what is cut must not be kept waiting by another one when applications are quiet.
    pub(super) fn is_quiescing(&self) -> bool {
        self.wishes.waiting.front().is_some_and(|w| w.stage == Stage::Quiescing)
    }

    /// The first wish is seen to, if all volumes can be cut now. True: something was asked for.
    pub(super) fn try_wish(&mut self, now: Nanos, out: &mut Vec<Action>) -> bool {
        if self.phase != Phase::Running {
            return false;
        }
        // What was tried in vain, and waits, keeps nobody else waiting.
        let is_due = |w: &Wished| matches!(w.stage, Stage::Due { not_before } if now >= not_before);
        let is_paused = |w: &Wished| matches!(w.stage, Stage::Due { not_before } if now < not_before);
        if self.wishes.waiting.front().is_some_and(is_paused)
            && let Some(wished) = self.wishes.waiting.iter().position(is_due).and_then(|at| self.wishes.waiting.remove(at))
        {
            self.wishes.waiting.push_front(wished);
        }
        let Some(first) = self.wishes.waiting.front() else { return false };
        if !is_due(first) || !self.can_cut_all(now) {
            return false;
        }
        let (id, is_of_cohort) = (first.wish.id, first.wish.around.is_cohort());
        match first.label() {
            Labelled::Pending => {
                self.set_wish_stage(Stage::Quiescing);
                out.push(if is_of_cohort { Action::CanCut { wish: id } } else { Action::Quiesce { wish: id } });
            }
            label => self.switch_for_a_wish(now, label, out),
        }
        true
    }

    fn set_wish_stage(&mut self, stage: Stage) {
        if let Some(first) = self.wishes.waiting.front_mut() {
            first.stage = stage;
        }
    }

    fn switch_for_a_wish(&mut self, now: Nanos, label: Labelled, out: &mut Vec<Action>) {
        self.set_wish_stage(Stage::Switching);
        let members: Vec<VolumeId> = self.volumes.keys().copied().collect();
        self.switch(now, LayerKind::Point, &members, Some(label), out);
    }

    fn can_cut_all(&self, now: Nanos) -> bool {
        matches!(self.link, Link::Up { .. })
            && self.switching.is_none()
            && !self.volumes.is_empty()
            && self.wishes.lacking.is_empty()
            && self.in_the_way().is_empty()
            && !self.cut_must_wait(now)
    }

    /// Volumes that cannot be in a cut of all now.
    fn in_the_way(&self) -> Vec<VolumeId> {
        let (fits, not): (Vec<VolumeId>, Vec<VolumeId>) =
            self.volumes.values().map(|v| v.id()).partition(|id| self.may_switch(&self.volumes[id]));
        let too_big = self.too_big_for_a_cut(&fits);
        not.into_iter().chain(too_big).collect()
    }

    /// Applications are quiet, or could not be quieted, which is over then.
    pub(super) fn quiesced(&mut self, now: Nanos, wish: u64, result: Result<(), String>, out: &mut Vec<Action>) {
        let is_awaited = self.wishes.waiting.front().is_some_and(|w| w.wish.id == wish && w.stage == Stage::Quiescing);
        match (is_awaited, result) {
            (true, Err(why)) if self.wishes.waiting.front().is_some_and(|w| w.is_unwanted || w.wish.around.is_cohort()) => {
                self.wishes.waiting.pop_front();
                out.push(Action::Report { volume: None, what: Report::WishDropped { wish, why } });
            }
            (true, Err(why)) => {
                let first = self.wishes.waiting.front_mut().expect("just seen");
                // It is cut all the same, and says so: who reads the list of points is to see what happened.
                first.failed = Some(why.clone());
                first.stage = Stage::Due { not_before: now };
                out.push(Action::Report { volume: None, what: Report::HooksFailed { why } });
            }
            (true, Ok(())) if self.phase == Phase::Running && self.can_cut_all(now) => {
                self.switch_for_a_wish(now, Labelled::Pending, out);
            }
            (true, Ok(())) => {
                out.push(Action::Resume { epoch: None });
                self.try_wish_again(now, "it could not be cut when its applications were quiet", out);
            }
            (false, Ok(())) => out.push(Action::Resume { epoch: None }),
            (false, Err(_)) => {}
        }
    }

    /// The first of what follows a switch: nobody is kept quiet for longer than that took.
    pub(super) fn switched_for_a_wish(&self, switch: Option<&Labelled>, id: EpochId, out: &mut Vec<Action>) {
        if switch == Some(&Labelled::Pending) {
            out.push(Action::Resume { epoch: Some(id) });
        }
    }

    /// What a wished switch came to.
    pub(super) fn wish_is_cut(&mut self, label: Labelled, id: EpochId) {
        let unchecked = mutation::on("a point is called consistent before it is known");
        let label = match label {
            Labelled::Pending if unchecked => Labelled::Said(Box::new(Label::new(Consistency::Application, "", "not known yet"))),
            label => label,
        };
        if let Some(epoch) = self.epochs.get_mut(&id) {
            epoch.label = label;
        }
        self.set_wish_stage(Stage::Cut(id));
    }

    /// Whether applications were quiet all along; or whether all groups of the cohort were cut while all were held.
    pub(super) fn resumed(&mut self, id: EpochId, result: Result<String, String>, out: &mut Vec<Action>) {
        let wish = self.wishes.waiting.front().filter(|w| w.stage == Stage::Cut(id)).map(|w| w.wish.clone());
        let title = wish.as_ref().map(|wish| wish.title.as_str()).unwrap_or_default();
        let cohort = wish.as_ref().and_then(|wish| match &wish.around {
            Around::Cohort(cut, cohort) => Some((*cut, cohort)),
            Around::Nothing | Around::Hooks => None,
        });
        let is_of_cohort = cohort.is_some();
        let label = match (&result, cohort) {
            (Ok(said), None) => Label::new(Consistency::Application, title, said),
            (Ok(_), Some((cut, cohort))) => Label::new(Consistency::Cohort(cut), title, cohort.as_str()),
            (Err(why), _) => Label::new(Consistency::Crash, title, why),
        };
        if let Some(epoch) = self.epochs.get_mut(&id).filter(|e| e.label == Labelled::Pending) {
            // Of a cut that is none together with others nothing is to be said.
            let is_nothing = is_of_cohort && result.is_err();
            epoch.label = if is_nothing { Labelled::Not } else { Labelled::Said(Box::new(label)) };
        }
        if let Err(why) = result
            && !is_of_cohort
        {
            out.push(Action::Report { volume: None, what: Report::HooksFailed { why } });
        }
    }

    pub(super) fn label_is_pending(&self, id: EpochId) -> bool {
        self.epochs.get(&id).is_some_and(|e| e.label == Labelled::Pending)
    }

    /// What is said of a cut, once it may be.
    pub(super) fn label_of(&self, id: EpochId) -> Option<Box<Label>> {
        match &self.epochs.get(&id)?.label {
            Labelled::Said(label) => Some(label.clone()),
            Labelled::Not | Labelled::Pending => None,
        }
    }

    /// A point of an epoch is published.
    pub(super) fn wish_published(&mut self, id: EpochId, point: PointStatus, out: &mut Vec<Action>) {
        if self.wishes.waiting.front().is_some_and(|w| w.stage == Stage::Cut(id)) {
            let Wished { wish, .. } = self.wishes.waiting.pop_front().expect("just seen");
            let is_asked = wish.around != Around::Nothing || !wish.title.is_empty();
            let is_kept = self.features.has(Features::LABELS) || !is_asked;
            let label = match is_kept {
                true => self.label_of(id),
                false => Some(Box::new(Label::new(Consistency::Crash, "", NO_LABELS))),
            };
            if wish.around == Around::Hooks && !is_kept {
                out.push(Action::Report { volume: None, what: Report::HooksFailed { why: NO_LABELS.to_owned() } });
            }
            out.push(Action::Report { volume: None, what: Report::WishDone { wish: wish.id, point, label } });
        }
    }

    /// A cut that became none is tried again.
    pub(super) fn look_after_wishes(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Some(Wished { stage: Stage::Cut(id), .. }) = self.wishes.waiting.front() else { return };
        if !self.epochs.get(id).is_some_and(|epoch: &Epoch| epoch.kind == Kind::Cut) {
            self.try_wish_again(now, "its cut was given up", out);
        }
    }

    /// Its hooks run anew: what they said was of a cut that is no point.
    fn try_wish_again(&mut self, now: Nanos, why: &str, out: &mut Vec<Action>) {
        let recheck = self.config.limits.recheck;
        let is_stopping = self.phase != Phase::Running;
        let Some(first) = self.wishes.waiting.front_mut() else { return };
        let wish = first.wish.id;
        if is_stopping || first.is_unwanted || first.wish.around.is_cohort() {
            self.wishes.waiting.pop_front();
            let why = if is_stopping { STOPPING } else { why }.to_owned();
            return out.push(Action::Report { volume: None, what: Report::WishDropped { wish, why } });
        }
        let pause = recheck.saturating_mul(1 << first.tries.min(DOUBLINGS_MAX));
        first.stage = Stage::Due { not_before: now.saturating_add(pause) };
        first.tries += 1;
        first.failed = None;
        if first.wish.around == Around::Hooks && first.tries >= TRIES_IN_VAIN {
            let why = format!("tried {} times in vain: {why}", first.tries);
            out.push(Action::Report { volume: None, what: Report::HooksFailed { why } });
        }
        out.push(Action::Report { volume: None, what: Report::WishAgain { wish, why: why.to_owned() } });
    }

    /// Whether a wish waits for what is unpublished of a volume.
    pub(super) fn is_wished_for(&self, volume: &Volume) -> bool {
        let Some(Wished { stage: Stage::Cut(id), .. }) = self.wishes.waiting.front() else { return false };
        volume.layers.iter().any(|layer| layer.epoch == *id)
    }

    /// Whether anything is wished for.
    pub fn has_wishes(&self) -> bool {
        !self.wishes.waiting.is_empty()
    }

    /// What is wished for, and how it gets on; the first is seen to first.
    pub fn wishes(&self) -> Vec<WishStatus> {
        let all = self.wishes.waiting.iter().enumerate();
        all.map(|(at, w)| {
            let state = match w.stage {
                Stage::Due { .. } if at == 0 => {
                    let here = self.in_the_way().into_iter().map(|id| self.volumes[&id].meta.name.clone());
                    WishState::Waiting(self.wishes.lacking.iter().cloned().chain(here).collect())
                }
                Stage::Due { .. } => WishState::Waiting(Vec::new()),
                Stage::Quiescing => WishState::Quiescing,
                Stage::Switching | Stage::Cut(_) => WishState::Cut,
            };
            WishStatus {
                id: w.wish.id,
                title: w.wish.title.clone(),
                is_of_cohort: w.wish.around.is_cohort(),
                state,
                tries: w.tries,
            }
        })
        .collect()
    }
}

const NO_LABELS: &str = "the receiver keeps no labels: install the same version of Farside there";
/// A wish that was tried in vain so often is something that a person should know of.
const TRIES_IN_VAIN: u32 = 5;
const STOPPING: &str = "farsided is stopping";
