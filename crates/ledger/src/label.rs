//! What is said of a point beside when it was cut: by whom it was asked for, and whether applications were quiesced for it.

use std::collections::{BTreeMap, BTreeSet};

use farside_region::{Slot, VolumeId, printable, steers};
use serde::{Deserialize, Serialize};

use crate::retention::{Policy, Rule};
use crate::state::{Point, State};

/// What a source says of a point. A point without one is crash-consistent, and nobody tried for more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// What really happened.
    pub consistency: Consistency,
    /// What a person called it; at most [`Label::TEXT_BYTES_MAX`] bytes, and empty unless one did.
    pub title: String,
    /// What the hooks of the group said, or which of them failed and how; at most [`Label::TEXT_BYTES_MAX`] bytes.
    pub hooks: String,
}

impl Label {
    /// The longest of each text, in bytes.
    pub const TEXT_BYTES_MAX: usize = 256;

    /// Cut to what a record takes, at a character's end; what steers a terminal becomes spaces.
    pub fn new(consistency: Consistency, title: &str, hooks: &str) -> Self {
        Self { consistency, title: bounded(title), hooks: bounded(hooks) }
    }

    /// Whether no text is too long, and none steers the terminal of whoever reads it: a source is not trusted with that.
    pub fn fits(&self) -> bool {
        [&self.title, &self.hooks].into_iter().all(|text| text.len() <= Self::TEXT_BYTES_MAX && !text.chars().any(steers))
    }
}

/// In which state applications find their data in a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// As after a power cut: what was acknowledged is there, in order.
    Crash,
    /// They were quiesced: every hook of the group had done its part before the cut, and none was over before it.
    Application,
    /// As after a power cut of several hosts at one moment: groups of others were cut together with this one.
    Cohort(CohortCut),
}

/// A cut of several groups as one. Their points are one only together: a cut that some of them do not hold is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CohortCut {
    /// Of which cohort: see [`CohortCut::cohort_id`].
    pub cohort: [u8; 16],
    /// Which cut: drawn at random.
    pub cut: [u8; 16],
    /// How many groups it is of.
    pub groups: u16,
    /// When it was begun, by the wall clock of who began it, in milliseconds since 1970: the same in all of them.
    pub wall_ms: i64,
}

impl CohortCut {
    /// The id of a cohort of that name.
    pub fn cohort_id(name: &str) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::derive_key("farside 2026 cohort id v1", name.as_bytes())[..16]);
        id
    }
}

impl Consistency {
    /// The cut of several groups that it is of.
    pub fn cohort_cut(&self) -> Option<CohortCut> {
        match self {
            Self::Cohort(cut) => Some(*cut),
            Self::Crash | Self::Application => None,
        }
    }
}

fn bounded(text: &str) -> String {
    let mut end = text.len().min(Label::TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // No longer than before: a space takes one byte.
    printable(&text[..end], ' ')
}

impl Point {
    /// What was said of it.
    pub fn consistency(&self) -> Consistency {
        self.label.as_ref().map_or(Consistency::Crash, |label| label.consistency)
    }

    /// Which points it is one of, and stands for cells of a grid among: application-consistent ones, or those of a cohort. `None`: it is
    /// as all others, or degraded.
    fn kin(&self) -> Option<Kin> {
        match self.consistency() {
            _ if self.degraded => None,
            Consistency::Crash => None,
            Consistency::Application => Some(Kin::Applications),
            Consistency::Cohort(cut) => Some(Kin::Cohort(cut.cohort)),
        }
    }

    /// When it was cut, as far as cells of a grid go. † The groups of a cohort keep the same ones, whatever their ledgers' times are.
    fn cell_ms(&self) -> u64 {
        match self.consistency() {
            Consistency::Cohort(cut) => u64::try_from(cut.wall_ms).unwrap_or(0),
            Consistency::Crash | Consistency::Application => self.time_ms,
        }
    }

    /// Whether a volume is a member of it.
    pub(crate) fn holds(&self, volume: VolumeId) -> bool {
        self.members.iter().any(|member| member.key.volume == volume)
    }
}

impl State {
    /// [`State::prunable`], without the application-consistent points, and those of cohorts, that the policy would keep if there were no
    /// others: they are rare among crash-consistent ones, and would stand for no cell of a grid but by chance.
    ///
    /// Of the points of a volume that are of one kin, and are sound, it keeps the newest [`Policy::keep`], and for each rule of the grid the
    /// first of each cell. The answer only grows until a pin comes in, as that of [`State::prunable`] does: newer ones only add to those
    /// that are newer, what is first in its cell stays that, and is needed the longest of all in the cell.
    ///
    /// Points of cohorts that a person has `forgotten` (their [`CohortCut::cohort_id`]) are as all others: no newer ones come that they would
    /// make room for.
    pub fn prunable_beside_kin(&self, policy: &Policy, forgotten: &BTreeSet<[u8; 16]>) -> Vec<Slot> {
        let mut prunable = self.prunable(policy);
        if prunable.is_empty() {
            return prunable;
        }
        let mut all = BTreeMap::<Kin, Vec<&Point>>::new();
        let kin_of = |point: &Point| point.kin().filter(|kin| !matches!(kin, Kin::Cohort(id) if forgotten.contains(id)));
        self.points().values().filter_map(|point| Some((kin_of(point)?, point))).for_each(|(kin, point)| {
            all.entry(kin).or_default().push(point);
        });
        let newest: BTreeMap<Kin, _> =
            all.iter().map(|(kin, points)| (*kin, newest_of_each(points, policy.keep.max(1)))).collect();
        prunable.retain(|slot| {
            let Some(kin) = self.points().get(slot).and_then(kin_of) else { return true };
            let (points, newest) = (&all[&kin], &newest[&kin]);
            let at = points.binary_search_by_key(slot, |point| point.slot).expect("it is one of its kin");
            let is_new = |id: &VolumeId| newest.get(id).is_none_or(|oldest| slot >= oldest);
            let is_first = |id: VolumeId| {
                let before = points[..at].iter().rfind(|before| before.holds(id)).copied();
                self.age_clock_ms() < first_of_a_cell_until_ms(policy, points[at], before)
            };
            !points[at].members.iter().map(|member| member.key.volume).any(|id| is_new(&id) || is_first(id))
        });
        prunable
    }

    /// Up to when, by the age clock, a rule of the grid needs a point that is of some kin for a volume among those; 0: none does.
    pub(crate) fn stands_among_kin_until_ms(&self, policy: &Policy, volume: VolumeId, point: &Point) -> u64 {
        let Some(kin) = point.kin() else { return 0 };
        let before = self.points().range(..point.slot).rev().map(|(_, before)| before);
        first_of_a_cell_until_ms(
            policy,
            point,
            before.filter(|before| before.kin() == Some(kin)).find(|before| before.holds(volume)),
        )
    }
}

/// Points that stand for cells of a grid among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kin {
    Applications,
    Cohort([u8; 16]),
}

/// The oldest of the newest `keep` of each volume; of a volume with fewer than that nothing.
fn newest_of_each(points: &[&Point], keep: u32) -> BTreeMap<VolumeId, Slot> {
    let (mut seen, mut oldest) = (BTreeMap::<VolumeId, u32>::new(), BTreeMap::new());
    for point in points.iter().rev() {
        for member in &point.members {
            let count = seen.entry(member.key.volume).or_default();
            *count += 1;
            if *count == keep {
                oldest.insert(member.key.volume, point.slot);
            }
        }
    }
    oldest
}

/// Up to when, by the age clock, a rule needs a point that is the first of its cell after the one `before`.
fn first_of_a_cell_until_ms(policy: &Policy, point: &Point, before: Option<&Point>) -> u64 {
    let is_first = |rule: &&Rule| before.is_none_or(|before| rule.cell(before.cell_ms()) != rule.cell(point.cell_ms()));
    policy.grid.rules().iter().filter(is_first).map(|rule| rule.lapses_at_ms(point, point.cell_ms())).max().unwrap_or(0)
}
