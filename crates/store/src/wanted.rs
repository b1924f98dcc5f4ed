//! Which point a target is to hold that is kept equal to points, and when all of it is compared: for whoever has followers, the receiver and
//! `farside store follow`. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use farside_ledger::{Point, PointMember, State, VolumeState};
use farside_region::{Slot, VolumeId};

/// How often all of a target is compared with the point that it holds.
const VERIFIED_EVERY: Duration = Duration::from_secs(7 * 86_400);
/// A point that could not be read so often is not tried again before there is a newer one.
const TRIED_MAX: u32 = 2;
/// Points of which that is remembered.
const TRIED_REMEMBERED: usize = 64;

/// The point that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The newest.
    Newest,
    /// The newest that is older than this by the age clock, in milliseconds.
    Behind(u64),
    /// One, and no other.
    Point(Slot),
}

impl Wanted {
    /// That point of a volume, if there is one; in words, why there is none. Points in `avoid` could not be read.
    ///
    /// # Errors
    /// The words.
    pub fn find<'s>(self, state: &'s State, volume: VolumeId, avoid: &BTreeSet<Slot>) -> Result<&'s Point, String> {
        let name = || state.volume(volume).map_or_else(String::new, |volume| VolumeState::meta(volume).name.to_string());
        let delay_ms = match self {
            Self::Newest => 0,
            Self::Behind(delay_ms) => delay_ms,
            Self::Point(slot) => {
                let point = state.points().get(&slot).ok_or_else(|| format!("point {slot} is not there any more"))?;
                return match member(point, volume) {
                    None => Err(format!("{} is not in point {slot}", name())),
                    Some(member) if member.degraded => {
                        Err(format!("the source could not read all of {} in point {slot}", name()))
                    }
                    Some(_) => Ok(point),
                };
            }
        };
        let until_ms = state.age_clock_ms().checked_sub(delay_ms);
        let is_due = |point: &&Point| until_ms.is_some_and(|until_ms| point.age_clock_ms <= until_ms);
        let mut points = state.points_below(None).filter(is_due).filter(|point| is_whole(point, volume, avoid));
        points.next().ok_or_else(|| match delay_ms {
            0 => format!("no point holds all of {} yet", name()),
            _ => format!("no point of {} is old enough yet", name()),
        })
    }

    /// The point that one which is always a while behind can hold next, when it is old enough. `above`: the one that it holds.
    pub fn next_due(self, state: &State, volume: VolumeId, above: Option<Slot>, avoid: &BTreeSet<Slot>) -> Option<Slot> {
        let Self::Behind(_) = self else { return None };
        let above = above.map_or(Bound::Unbounded, Bound::Excluded);
        let mut newer = state.points().range((above, Bound::Unbounded));
        newer.find(|(_, point)| is_whole(point, volume, avoid)).map(|(slot, _)| *slot)
    }
}

fn member(point: &Point, volume: VolumeId) -> Option<&PointMember> {
    point.members.iter().find(|member| member.key.volume == volume)
}

fn is_whole(point: &Point, volume: VolumeId, avoid: &BTreeSet<Slot>) -> bool {
    member(point, volume).is_some_and(|member| !member.degraded) && !avoid.contains(&point.slot)
}

/// Points that could not be read, and how often that was tried.
#[derive(Clone, Debug, Default)]
pub struct Tried(BTreeMap<Slot, u32>);

impl Tried {
    /// It could not be read once more. A newer one may be whole.
    pub fn failed(&mut self, point: Slot) {
        *self.0.entry(point).or_default() += 1;
        while self.0.len() > TRIED_REMEMBERED {
            self.0.pop_first();
        }
    }

    /// Those that are not tried again.
    pub fn avoid(&self) -> BTreeSet<Slot> {
        self.0.iter().filter(|(_, times)| **times >= TRIED_MAX).map(|(point, _)| *point).collect()
    }

    /// All may be tried again.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Whether all of a target is to be compared again that was whole at these times, in milliseconds since 1970: when it was filled, when it was
/// compared.
pub fn is_verify_due(was_whole_ms: impl IntoIterator<Item = Option<i64>>, now_ms: i64) -> bool {
    let every_ms = i64::try_from(VERIFIED_EVERY.as_millis()).expect("a week");
    // A time that has not come yet is not believed, and does not hide one that has.
    let newest = was_whole_ms.into_iter().flatten().filter(|then| *then <= now_ms).max();
    newest.is_none_or(|then| now_ms.saturating_sub(then) >= every_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{TestVolume, state_of_points};

    #[test]
    fn the_newest_or_one_that_is_old_enough_and_could_be_read() {
        let volume = TestVolume::new("data", 64);
        let (state, id) = (state_of_points(&volume, 10), volume.id());
        let none = BTreeSet::new();
        let find = |wanted: Wanted, avoid: &BTreeSet<Slot>| wanted.find(&state, id, avoid).map(|point| point.slot.0);
        assert_eq!(find(Wanted::Newest, &none), Ok(10));
        // One a second.
        assert_eq!(find(Wanted::Behind(3000), &none), Ok(7));
        assert!(find(Wanted::Behind(60_000), &none).is_err_and(|why| why.contains("data") && why.contains("old enough")));
        assert_eq!(find(Wanted::Point(Slot(4)), &none), Ok(4));
        assert!(find(Wanted::Point(Slot(40)), &none).is_err());
        assert_eq!(Wanted::Behind(3000).next_due(&state, id, Some(Slot(7)), &none), Some(Slot(8)));
        assert_eq!(Wanted::Newest.next_due(&state, id, Some(Slot(7)), &none), None);

        let mut tried = Tried::default();
        tried.failed(Slot(10));
        assert_eq!(find(Wanted::Newest, &tried.avoid()), Ok(10), "once may be chance");
        tried.failed(Slot(10));
        assert_eq!(find(Wanted::Newest, &tried.avoid()), Ok(9));
        assert_eq!(Wanted::Behind(3000).next_due(&state, id, Some(Slot(9)), &tried.avoid()), None);
        (20..200).for_each(|slot| tried.failed(Slot(slot)));
        assert!(tried.0.len() <= TRIED_REMEMBERED);
    }

    #[test]
    fn a_week_after_it_was_whole_it_is_compared_again_and_clocks_are_not_believed() {
        let week = 7 * 86_400_000;
        assert!(is_verify_due([None, None], 5));
        assert!(!is_verify_due([Some(0), None], week - 1) && is_verify_due([Some(0), None], week));
        assert!(!is_verify_due([Some(0), Some(week)], week));
        assert!(is_verify_due([Some(week)], 0), "the clock was put back");
        assert!(!is_verify_due([Some(week), Some(5)], 6), "and all was compared since");
    }
}
