//! Points page by page: what a page is, where the next one begins, and how one is made of the points of several groups. Pure.
//!
//! Within a group points are ordered by slot, which is what a page ends at: wall clocks jump, and points come and go between
//! two pages. Groups are merged by the source's clock as well as that goes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::routes::PagesQuery;
use crate::{ANSWER_BYTES_MAX, POINTS_LISTED_MAX, Point};

/// At most this many points are in one page.
pub const POINTS_PAGE_MAX: usize = 1000;

/// A page ends with the point that makes it longer than this, as JSON.
pub const POINT_PAGE_BYTES: usize = 4 << 20;

/// The longest [`PointPage::next`], in bytes: it comes back in the path of a request.
const CURSOR_BYTES_MAX: usize = 16 << 10;

/// Some of the points that somebody asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PointPage {
    /// Newest first.
    pub points: Vec<Point>,
    /// How many there are, in all pages; only in the first one.
    #[serde(default)]
    pub total: Option<u64>,
    /// What to ask with as `cursor` for those that follow; nothing if none do.
    #[serde(default)]
    pub next: Option<String>,
    /// Why there may be points that are newer than what is listed, a sentence for each group; only in the first page.
    #[serde(default)]
    pub hidden: Vec<String>,
}

/// Where a page ended: of each group that had a point on it or on one before, the slot of the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageCursor {
    below: BTreeMap<(String, String), u64>,
}

/// A text that is no cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not where a page of points ended: give `next` of the page before, as it is")]
pub struct PageCursorError(String);

impl PageCursor {
    /// Only points of a group below this slot follow; `None`: all.
    pub fn below(&self, source: &str, group: &str) -> Option<u64> {
        self.below.get(&(source.to_owned(), group.to_owned())).copied()
    }

    /// Whether it is where the first page begins.
    pub fn is_start(&self) -> bool {
        self.below.is_empty()
    }
}

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ((source, group), slot)) in self.below.iter().enumerate() {
            let lead = if i == 0 { "" } else { "," };
            write!(f, "{lead}{source}/{group}@{slot}")?;
        }
        Ok(())
    }
}

impl FromStr for PageCursor {
    type Err = PageCursorError;

    fn from_str(s: &str) -> Result<Self, PageCursorError> {
        let one = |text: &str| {
            let (group, slot) = text.split_once('@')?;
            let (source, group) = group.split_once('/')?;
            Some(((source.to_owned(), group.to_owned()), slot.parse().ok()?))
        };
        let below = s.split(',').map(one).collect::<Option<_>>();
        below.map(|below| Self { below }).ok_or_else(|| PageCursorError(s.chars().take(80).collect()))
    }
}

/// A page that is being made of what groups have. Holds no more points than go on it, and those of the group that comes in.
#[derive(Debug)]
pub struct PageMaker {
    limit: usize,
    bytes: usize,
    cursor: PageCursor,
    total: Option<u64>,
    more: bool,
    hidden: Vec<String>,
    /// With what they are ordered by: the earliest cut in its group since the page began.
    points: Vec<(Timestamp, Point)>,
}

/// The groups are too many for one listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these are points of {0} groups, more than one listing goes through")]
pub struct TooManyGroups(pub usize);

impl PageMaker {
    /// A page of at most `limit` points that goes on where `cursor` says. It ends early after so many bytes of JSON.
    pub fn new(limit: usize, bytes: usize, cursor: PageCursor) -> Self {
        let total = cursor.is_start().then_some(0);
        Self { limit: limit.max(1), bytes, cursor, total, more: false, hidden: Vec::new(), points: Vec::new() }
    }

    /// The page that is asked for, as daemons answer and who reads a store makes it.
    ///
    /// # Errors
    /// When its cursor is none.
    pub fn for_query(query: &PagesQuery) -> Result<Self, PageCursorError> {
        let cursor: Option<PageCursor> = query.cursor.as_deref().map(str::parse).transpose()?;
        let limit = query.limit.map_or(POINTS_PAGE_MAX, |n| (n as usize).min(POINTS_PAGE_MAX));
        Ok(Self::new(limit, POINT_PAGE_BYTES, cursor.unwrap_or_default()))
    }

    /// The newest points, for who asks for no pages.
    pub fn newest(limit: Option<u32>) -> Self {
        let limit = limit.map_or(POINTS_LISTED_MAX, |n| (n as usize).min(POINTS_LISTED_MAX));
        Self::new(limit, ANSWER_BYTES_MAX / 2, PageCursor::default())
    }

    /// How many points of a group may be on it.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Only points of a group below this slot.
    pub fn below(&self, source: &str, group: &str) -> Option<u64> {
        self.cursor.below(source, group)
    }

    /// Takes the newest points of one group below that slot, newest first: at least [`PageMaker::limit`] of them, if there are so
    /// many. `more`: there are others. `total`: how many there are above and below.
    pub fn add(&mut self, points: impl IntoIterator<Item = Point>, more: bool, total: Option<u64>) {
        let mut earliest = Timestamp::MAX;
        self.points.extend(points.into_iter().map(|point| {
            earliest = earliest.min(point.cut_wall);
            (earliest, point)
        }));
        // Those of one group stay in their order.
        self.points.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        self.more |= more || self.points.len() > self.limit;
        self.points.truncate(self.limit);
        self.total = self.total.zip(total).map(|(sum, total)| sum.saturating_add(total));
    }

    /// Says why newer points of a group may be there. Only the first page tells.
    pub fn may_hide(&mut self, why: impl IntoIterator<Item = String>) {
        if self.total.is_some() {
            self.hidden.extend(why);
        }
    }

    /// The page.
    ///
    /// # Errors
    /// Where the next one begins takes too many words.
    pub fn page(mut self) -> Result<PointPage, TooManyGroups> {
        let points = self.take();
        for point in &points {
            self.cursor.below.insert((point.source.clone(), point.group.clone()), point.id.slot);
        }
        let next = self.more.then(|| self.cursor.to_string());
        if next.as_ref().is_some_and(|next| next.len() > CURSOR_BYTES_MAX) {
            return Err(TooManyGroups(self.cursor.below.len()));
        }
        Ok(PointPage { points, total: self.total, next, hidden: self.hidden })
    }

    /// Its points, for whoever wants no other page.
    pub fn points(mut self) -> Vec<Point> {
        self.take()
    }

    /// Those that there is room for.
    fn take(&mut self) -> Vec<Point> {
        let (mut points, mut bytes) = (Vec::new(), 0);
        for (_, point) in std::mem::take(&mut self.points) {
            if bytes > self.bytes {
                self.more = true;
                break;
            }
            bytes += serde_json::to_vec(&point).map_or(0, |json| json.len());
            points.push(point);
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PointId, PointMember};

    fn point(group: &str, slot: u64, second: i64, members: usize) -> Point {
        let member = |i| PointMember {
            volume: format!("volume-{i}"),
            volume_id: "0".repeat(32),
            bytes: u64::MAX,
            term: u64::MAX,
            seq: slot,
            layer_bytes: Some(u64::MAX),
        };
        Point {
            id: PointId { slot, tag: 7 },
            source: "web".into(),
            group: group.into(),
            cut_wall: Timestamp::from_second(second).expect("a time"),
            cut_mono_before_ns: u64::MAX,
            cut_mono_after_ns: u64::MAX,
            boot: "0".repeat(32),
            ledger_time_ms: u64::MAX,
            members: (0..members).map(member).collect(),
            pinned: false,
            pins: Vec::new(),
            degraded: false,
            verified: Vec::new(),
            consistency: crate::Consistency::Crash,
            cut: None,
            title: String::new(),
            hooks: String::new(),
        }
    }

    /// What a daemon does: groups are asked for as many as a page has.
    fn page(groups: &BTreeMap<&str, Vec<Point>>, limit: usize, cursor: PageCursor, asked: &mut usize) -> PointPage {
        let mut maker = PageMaker::new(limit, POINT_PAGE_BYTES, cursor);
        for (name, points) in groups {
            let below = maker.below("web", name).unwrap_or(u64::MAX);
            let first = points.partition_point(|p| p.id.slot >= below);
            let end = (first + maker.limit()).min(points.len());
            *asked += end - first;
            maker.add(points[first..end].iter().cloned(), end < points.len(), Some(points.len() as u64));
        }
        maker.page().expect("few groups")
    }

    #[test]
    fn a_hundred_thousand_points_of_three_groups_are_listed_in_small_answers() {
        let mut groups = BTreeMap::new();
        for (group, count, members) in [("db", 60_000, 1), ("files", 30_000, 2), ("wide", 10_000, 64)] {
            // Cut alternately; the clock of one was put back by a day once.
            let second = |slot: u64| slot as i64 * 100_000 / count - if group == "db" && slot > 40_000 { 86_400 } else { 0 };
            groups
                .insert(group, (0..count as u64).rev().map(|slot| point(group, slot, second(slot), members)).collect::<Vec<_>>());
        }
        let (mut cursor, mut listed, mut pages) = (PageCursor::default(), BTreeMap::<String, Vec<u64>>::new(), 0);
        loop {
            let mut asked = 0;
            let first = cursor.is_start();
            let page = page(&groups, POINTS_PAGE_MAX, cursor, &mut asked);
            pages += 1;
            assert!(asked <= 3 * POINTS_PAGE_MAX, "page {pages} needed {asked} points");
            let bytes = serde_json::to_vec(&page).expect("JSON").len();
            assert!(bytes <= POINT_PAGE_BYTES + 64 * 1024, "page {pages} has {bytes} bytes");
            assert_eq!(page.total, first.then_some(100_000));
            for point in &page.points {
                listed.entry(point.group.clone()).or_default().push(point.id.slot);
            }
            match page.next {
                Some(next) => cursor = next.parse().expect("a cursor"),
                None => break,
            }
        }
        assert!(pages >= 100, "{pages}");
        for (group, points) in &groups {
            assert!(listed[*group].iter().eq(points.iter().map(|p| &p.id.slot)), "{group}: each once, in its order");
        }
    }

    #[test]
    fn groups_are_merged_by_the_time_of_their_cuts() {
        let of = |group, times: &[i64]| {
            let count = times.len() as u64;
            times.iter().zip((0..count).rev()).map(|(second, slot)| point(group, slot, *second, 1)).collect::<Vec<_>>()
        };
        let groups = BTreeMap::from([("a", of("a", &[50, 30, 10])), ("b", of("b", &[40, 20]))]);
        let first = page(&groups, 3, PageCursor::default(), &mut 0);
        let times = |page: &PointPage| page.points.iter().map(|p| p.cut_wall.as_second()).collect::<Vec<_>>();
        assert_eq!((times(&first), first.total, first.next.as_deref()), (vec![50, 40, 30], Some(5), Some("web/a@1,web/b@1")));
        let second = page(&groups, 3, "web/a@1,web/b@1".parse().expect("a cursor"), &mut 0);
        assert_eq!((times(&second), second.total, second.next), (vec![20, 10], None, None));
        for bad in ["", "web/a", "web@1", "web/a@x", "web/a@1,", "web/a@-1"] {
            assert!(bad.parse::<PageCursor>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn more_groups_than_a_request_can_name_are_refused() {
        let mut maker = PageMaker::new(POINTS_PAGE_MAX, POINT_PAGE_BYTES, PageCursor::default());
        for i in 0..900 {
            maker.add([point(&format!("a-group-with-a-long-name-{i}"), 1, 1, 1)], true, None);
        }
        assert_eq!(maker.page(), Err(TooManyGroups(900)));
    }
}
