//! Finding points among many: which ones somebody wants, and the order in which they are given.

use farside_region::{Slot, VolumeId};
use serde::{Deserialize, Serialize};

use crate::label::Consistency;
use crate::state::{Point, State};

/// Which points somebody wants; the default wants all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointFilter {
    /// Those that hold this volume.
    pub volume: Option<VolumeId>,
    /// Those cut then or later by the source's wall clock, in milliseconds since 1970.
    pub since_wall_ms: Option<i64>,
    /// Those cut then or earlier.
    pub until_wall_ms: Option<i64>,
    /// Only pinned ones.
    pub pinned: bool,
    /// Those with a pin whose reason contains this text, capital letters or not.
    pub reason: Option<String>,
    /// Only those that were verified, by any way.
    pub verified: bool,
    /// Only those for which applications were quiesced.
    pub consistent: bool,
    /// Those whose title, or what their hooks said, or the id of the cut of several groups that they are of, contains this text, capital letters
    /// or not.
    pub label: Option<String>,
}

impl PointFilter {
    /// Whether it wants every point.
    pub fn wants_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it wants this one.
    pub fn fits(&self, point: &Point) -> bool {
        let wall_ms = point.epoch.wall_ms;
        self.since_wall_ms.is_none_or(|since| wall_ms >= since)
            && self.until_wall_ms.is_none_or(|until| wall_ms <= until)
            && (!self.pinned || !point.pins.is_empty())
            && (!self.verified || point.proofs.iter().next().is_some())
            && (!self.consistent || point.consistency() == Consistency::Application)
            && self.label.as_ref().is_none_or(|text| has_label(point, text))
            && self.volume.is_none_or(|volume| point.holds(volume))
            && self.reason.as_ref().is_none_or(|text| has_reason(point, text))
    }
}

fn has_label(point: &Point, text: &str) -> bool {
    let cut = point.consistency().cohort_cut().map(|cut| cut.cut.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    point.label.as_ref().is_some_and(|label| is_in(text, [&label.title, &label.hooks].into_iter().chain(&cut)))
}

fn has_reason(point: &Point, text: &str) -> bool {
    is_in(text, point.pins.values())
}

/// Whether one of these contains a text, capital letters or not.
fn is_in<'a>(text: &str, all: impl IntoIterator<Item = &'a String>) -> bool {
    let mut all = all.into_iter().peekable();
    if all.peek().is_none() {
        return false;
    }
    let text = text.to_lowercase();
    all.any(|said| said.to_lowercase().contains(&text))
}

/// So far a host's clock may run ahead of the receiver's.
const AHEAD_MS: i64 = 5 * 60 * 1000;

impl State {
    /// The first retained point that was cut after a moment, as its host's clock said and the receiver's did not contradict, then or later: one of
    /// them may have run ahead for a while, or both. † What comes after that point was cut after the moment, too, whatever a clock says that was set
    /// back meanwhile (a battery that died).
    pub fn first_cut_after(&self, wall_ms: i64) -> Option<Slot> {
        let (mut first, mut published) = (None, i64::MAX);
        for point in self.points().values().rev() {
            published = published.min(point.published_wall_ms);
            let cut = point.epoch.wall_ms;
            if cut > wall_ms && cut <= published.saturating_add(AHEAD_MS) {
                first = Some(point.slot);
            }
        }
        first
    }

    /// The retained points below a slot (`None`: all), newest first. Wall clocks jump; slots do not.
    pub fn points_below(&self, below: Option<Slot>) -> impl DoubleEndedIterator<Item = &Point> {
        let end = below.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.points().range((std::ops::Bound::Unbounded, end)).rev().map(|(_, point)| point)
    }

    /// How many points a filter wants. Looks at each of them unless it wants all.
    pub fn count_points(&self, filter: &PointFilter) -> u64 {
        match filter.wants_all() {
            true => self.points().len() as u64,
            false => self.points().values().filter(|point| filter.fits(point)).count() as u64,
        }
    }
}
