//! Recovery points as they are listed, and the ways a person names one.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{ApiError, ErrorCode};

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Point {
    /// Its id.
    pub id: PointId,
    /// The source that made it.
    pub source: String,
    /// The group it is of.
    pub group: String,
    /// The wall clock of the source at the cut; for people.
    pub cut_wall: Timestamp,
    /// The source's CLOCK_MONOTONIC read just before the cut…
    pub cut_mono_before_ns: u64,
    /// …and just after it: the cut fell between the two.
    pub cut_mono_after_ns: u64,
    /// The source's boot, in which those readings mean something: 32 hex digits.
    pub boot: String,
    /// Ledger time, in which the cells of a grid are cut.
    pub ledger_time_ms: u64,
    /// The volumes it holds, by name.
    pub members: Vec<PointMember>,
    /// Never pruned until unpinned.
    #[serde(default)]
    pub pinned: bool,
    /// Why it is pinned, once per pin, as far as who is asked knows.
    #[serde(default)]
    pub pins: Vec<PointPin>,
    /// Some runs could not be read from the backing; a restore wants `--allow-degraded`.
    #[serde(default)]
    pub degraded: bool,
    /// When all of it was verified last, by each way, as far as who is asked knows.
    #[serde(default)]
    pub verified: Vec<PointVerified>,
    /// In which state applications find their data in it.
    #[serde(default)]
    pub consistency: Consistency,
    /// The cut of several groups that it is of, with [`Consistency::Cohort`].
    #[serde(default)]
    pub cut: Option<PointCut>,
    /// What a person called it; empty unless one did.
    #[serde(default)]
    pub title: String,
    /// What the hooks of its group said, or which of them failed, and how; empty where none ran.
    #[serde(default)]
    pub hooks: String,
}

/// In which state applications find their data in a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Consistency {
    /// As after a power cut: all that was acknowledged is there, in order.
    #[default]
    Crash,
    /// Every hook of the group had done its part before the cut, and none was over before it.
    Application,
    /// As after a power cut of several hosts at one moment: the group was cut as one with groups of other hosts. `hooks` is the name of that
    /// cohort, as the gateway has it.
    Cohort,
}

/// A cut of several groups as one, as each of their points has it. It says how many groups it is of, and not which: it holds only if so many
/// groups have a point of that cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PointCut {
    /// Which cut: 32 hex digits.
    pub id: String,
    /// Of how many groups.
    pub groups: u16,
    /// When it was begun, by the gateway's clock.
    pub at: Timestamp,
}

impl PointCut {
    /// Of what the ledger says.
    pub fn new(id: &[u8; 16], groups: u16, wall_ms: i64) -> Self {
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id, groups, at: Timestamp::from_millisecond(wall_ms).unwrap_or_default() }
    }
}

/// That a point was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PointVerified {
    /// How.
    pub how: VerifiedHow,
    /// When, by the gateway's clock.
    pub at: Timestamp,
}

/// How a point was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VerifiedHow {
    /// It was read in full, and every granule has the digest that was computed at the source.
    ReadBack,
    /// The digests of it are those of what the source holds now.
    WithSource,
}

impl VerifiedHow {
    /// For people, after "verified".
    pub fn words(self) -> &'static str {
        match self {
            Self::ReadBack => "read in full",
            Self::WithSource => "compared with the source",
        }
    }
}

/// The newest point of a group that was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VerifiedPoint {
    /// Its id.
    pub id: PointId,
    /// The wall clock of its source at the cut.
    pub cut_wall: Timestamp,
    /// How and when it was verified last.
    pub verified: PointVerified,
    /// It is still kept.
    pub retained: bool,
}

/// One pin of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PointPin {
    /// The slot of its record: the pin's name.
    pub slot: u64,
    /// What the person said.
    #[serde(default)]
    pub reason: String,
}

/// Body of [`POINT_PIN`](crate::routes::POINT_PIN).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PinRequest {
    /// Why, for people; at most [`PIN_REASON_BYTES_MAX`] bytes, and not beginning as those of legal holds do.
    pub reason: String,
}

/// Body of [`POINT_HOLD`](crate::routes::POINT_HOLD) and [`POINT_RELEASE`](crate::routes::POINT_RELEASE).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// For which case: not empty; with what stands before it in a pin's reason, at most [`PIN_REASON_BYTES_MAX`] bytes.
    pub case: String,
}

/// The longest reason of a pin, in bytes.
pub const PIN_REASON_BYTES_MAX: usize = 1024;
/// What the reason of a pin begins with that is a legal hold; what follows is its case.
pub const HOLD_REASONS: &str = "legal hold: ";

impl PointPin {
    /// The case of a legal hold.
    pub fn case(&self) -> Option<&str> {
        self.reason.strip_prefix(HOLD_REASONS)
    }
}

/// A volume in a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PointMember {
    /// Its name.
    pub volume: String,
    /// Its id: 32 hex digits.
    pub volume_id: String,
    /// Its size at the cut.
    pub bytes: u64,
    /// The claim its layer was sent under.
    pub term: u64,
    /// Which layer of that term.
    pub seq: u64,
    /// What the layer takes in the store, as far as who is asked knows.
    #[serde(default)]
    pub layer_bytes: Option<u64>,
}

impl Point {
    /// Whether the volume or group that `address` names is in it.
    pub fn is_of(&self, address: &Address) -> bool {
        address.is_group(&self.source, &self.group)
            || self.members.iter().any(|member| address.is_volume(&self.source, &self.group, &member.volume))
    }
}

/// The name of a point: its ledger slot and the first 32 bits of its record's digest, `42-9f3c2a1b`. The slot alone names it
/// within a group; the digest tells apart groups and histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId {
    /// The slot of its record.
    pub slot: u64,
    /// The first four bytes of its record's digest, big-endian.
    pub tag: u32,
}

impl PointId {
    /// The id of the record in `slot` with `digest`.
    pub fn new(slot: u64, digest: &[u8; 32]) -> Self {
        Self { slot, tag: u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) }
    }
}

impl utoipa::PartialSchema for PointId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let text = utoipa::openapi::schema::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String);
        text.pattern(Some("^[0-9]+-[0-9a-f]{8}$")).examples(["42-9f3c2a1b"]).into()
    }
}

impl utoipa::ToSchema for PointId {}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{:08x}", self.slot, self.tag))
    }
}

impl FromStr for PointId {
    type Err = PointRefError;

    fn from_str(s: &str) -> Result<Self, PointRefError> {
        match s.parse()? {
            PointRef::Id { slot, tag: Some(tag) } => Ok(Self { slot, tag }),
            _ => Err(PointRefError(s.chars().take(80).collect())),
        }
    }
}

impl Serialize for PointId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PointId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a person types where a point is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointRef {
    /// `latest`: the newest.
    Latest,
    /// `consistent`: the newest for which applications were quiesced.
    Consistent,
    /// `42-9f3c2a1b`, or `42` where the group is known.
    Id {
        /// The slot.
        slot: u64,
        /// The digest's beginning, if given.
        tag: Option<u32>,
    },
    /// `2026-03-01T12:00:00Z`: the newest whose cut is not later.
    At(Timestamp),
    /// `-5m`: the newest at least so old, by the clock of the machine that is asked.
    Ago(SignedDuration),
}

/// A text that names no point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a point: use `latest`, `consistent`, an id such as 42-9f3c2a1b, an RFC 3339 time such as 2026-03-01T12:00:00Z, or an age such \
     as -5m, -90s, -2h or -1d"
)]
pub struct PointRefError(pub String);

impl FromStr for PointRef {
    type Err = PointRefError;

    fn from_str(s: &str) -> Result<Self, PointRefError> {
        let wrong = || PointRefError(s.chars().take(80).collect());
        match s {
            "latest" => return Ok(Self::Latest),
            "consistent" => return Ok(Self::Consistent),
            _ => {}
        }
        if let Some(age) = s.strip_prefix('-') {
            return parse_age(age).map(Self::Ago).ok_or_else(wrong);
        }
        if let Ok(slot) = parse_digits(s) {
            return Ok(Self::Id { slot, tag: None });
        }
        if let Some((slot, tag)) = s.split_once('-')
            && let Ok(slot) = parse_digits(slot)
            && tag.len() == 8
            && tag.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Ok(Self::Id { slot, tag: u32::from_str_radix(tag, 16).ok() });
        }
        s.parse::<Timestamp>().map(Self::At).map_err(|_| wrong())
    }
}

impl fmt::Display for PointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Consistent => f.write_str("consistent"),
            Self::Id { slot, tag: None } => write!(f, "{slot}"),
            Self::Id { slot, tag: Some(tag) } => PointId { slot: *slot, tag: *tag }.fmt(f),
            Self::At(at) => at.fmt(f),
            Self::Ago(age) => {
                f.write_str("-")?;
                let mut rest = age.as_secs();
                for (unit, secs) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
                    let is_last_chance = unit == "s" && age.as_secs() == 0;
                    if rest >= secs || is_last_chance {
                        write!(f, "{}{unit}", rest / secs)?;
                    }
                    rest %= secs;
                }
                Ok(())
            }
        }
    }
}

/// Where in a group to look for the point that a [`PointRef`] names: the newest one there, if it [`PointSearch::is_meant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointSearch {
    /// Below this slot; `None`: anywhere.
    pub below: Option<u64>,
    /// Cut then or earlier.
    pub until: Option<Timestamp>,
    /// Only one for which applications were quiesced.
    pub consistent: bool,
    wanted: PointRef,
}

impl PointRef {
    /// Where to look for it; `now` is the wall clock.
    pub fn search(self, now: Timestamp) -> PointSearch {
        let until = match self {
            Self::At(at) => Some(at),
            Self::Ago(age) => Some(now.checked_sub(age).unwrap_or(Timestamp::MIN)),
            Self::Latest | Self::Consistent | Self::Id { .. } => None,
        };
        let below = match self {
            Self::Id { slot, .. } => slot.checked_add(1),
            _ => None,
        };
        PointSearch { below, until, consistent: self == Self::Consistent, wanted: self }
    }
}

impl PointSearch {
    /// Whether the newest point that was found there is the one that is named, and not an older one.
    pub fn is_meant(&self, found: PointId) -> bool {
        match self.wanted {
            PointRef::Id { slot, tag } => found.slot == slot && tag.is_none_or(|tag| tag == found.tag),
            _ => true,
        }
    }
}

/// Chooses among `points` (any order) the one that `wanted` names; `now` is the wall clock.
pub fn select_point<'a>(points: impl IntoIterator<Item = &'a Point>, wanted: PointRef, now: Timestamp) -> Option<&'a Point> {
    let fits = |point: &&Point| match wanted {
        PointRef::Latest => true,
        PointRef::Consistent => point.consistency == Consistency::Application,
        PointRef::Id { slot, tag } => point.id.slot == slot && tag.is_none_or(|tag| tag == point.id.tag),
        PointRef::At(at) => point.cut_wall <= at,
        PointRef::Ago(age) => now.checked_sub(age).is_ok_and(|at| point.cut_wall <= at),
    };
    points.into_iter().filter(fits).max_by_key(|point| point.id.slot)
}

/// What to say where [`select_point`] finds none among `points`, which are those `of` something, as far as that was said.
pub fn no_such_point(points: &[Point], wanted: PointRef, of: Option<&str>) -> ApiError {
    let ends = (points.iter().min_by_key(|p| p.cut_wall), points.iter().max_by_key(|p| p.cut_wall));
    let there = match ends {
        (Some(oldest), Some(newest)) if oldest.id != newest.id => {
            format!(
                "the oldest is {}, cut at {:.0}, the newest {}, cut at {:.0}",
                oldest.id, oldest.cut_wall, newest.id, newest.cut_wall
            )
        }
        (Some(only), _) => format!("the only one is {}, cut at {:.0}", only.id, only.cut_wall),
        _ => "there is none yet".to_owned(),
    };
    not_among(&there, wanted, of)
}

/// The same where only the newest of so many is at hand.
pub fn no_such_point_of(newest: &Point, total: u64, wanted: PointRef, of: Option<&str>) -> ApiError {
    if total == 1 {
        return no_such_point(std::slice::from_ref(newest), wanted, of);
    }
    not_among(&format!("of {total} the newest is {}, cut at {:.0}", newest.id, newest.cut_wall), wanted, of)
}

fn not_among(there: &str, wanted: PointRef, of: Option<&str>) -> ApiError {
    let whose = of.map_or_else(String::new, |of| format!(" of {of}"));
    let list = format!("see which there are: farside point list {}", of.unwrap_or("VOLUME|GROUP"));
    ApiError::new(ErrorCode::NotFound, format!("there is no point `{wanted}`{whose}: {there}"), list)
}

fn parse_digits(s: &str) -> Result<u64, ()> {
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
        return Err(());
    }
    s.parse().map_err(|_| ())
}

/// `90s`, `5m`, `2h`, `1d`, and sequences of them: `1h30m`.
fn parse_age(s: &str) -> Option<SignedDuration> {
    let (mut total, mut rest) = (SignedDuration::ZERO, s);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = rest.get(..digits)?.parse().ok()?;
        let unit_secs = match rest[digits..].chars().next()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(SignedDuration::from_secs(count.checked_mul(unit_secs)?))?;
        rest = &rest[digits + 1..];
    }
    (!s.is_empty()).then_some(total)
}

/// A volume or group, as far as it must be said. A volume: `VOLUME`, `SOURCE/VOLUME`, `GROUP/VOLUME` or
/// `SOURCE/GROUP/VOLUME`; a group: `GROUP` or `SOURCE/GROUP`. On a source host a name is enough; a store may hold many sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    within: Vec<String>,
    name: String,
}

impl Address {
    /// Whether it names this volume.
    pub fn is_volume(&self, source: &str, group: &str, volume: &str) -> bool {
        let within = match &self.within[..] {
            [] => true,
            [one] => one == source || one == group,
            [first, second, ..] => first == source && second == group,
        };
        within && self.name == volume
    }

    /// Whether it names this group.
    pub fn is_group(&self, source: &str, group: &str) -> bool {
        let within = match &self.within[..] {
            [] => true,
            [one] => one == source,
            _ => false,
        };
        within && self.name == group
    }

    /// What of a group it names: `None` nothing, as far as the names of source and group tell; `Some(None)` the group itself, and
    /// otherwise the volume of that name in it.
    pub fn within(&self, source: &str, group: &str) -> Option<Option<&str>> {
        if self.is_group(source, group) {
            return Some(None);
        }
        self.is_volume(source, group, &self.name).then_some(Some(&self.name))
    }

    /// Source and group of a volume, where it says both.
    pub fn source_and_group(&self) -> Option<(&str, &str)> {
        match &self.within[..] {
            [source, group] => Some((source, group)),
            _ => None,
        }
    }

    /// The last word: the name of the volume or group.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A text that is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no volume or group: use NAME, SOURCE/NAME or SOURCE/GROUP/VOLUME")]
pub struct AddressError(pub String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(s: &str) -> Result<Self, AddressError> {
        let mut parts: Vec<String> = s.split('/').map(str::to_owned).collect();
        if parts.len() > 3 || parts.iter().any(String::is_empty) {
            return Err(AddressError(s.chars().take(200).collect()));
        }
        let name = parts.pop().expect("a split has at least one part");
        Ok(Self { within: parts, name })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.within {
            write!(f, "{part}/")?;
        }
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(slot: u64, cut: &str) -> Point {
        Point {
            id: PointId { slot, tag: 0xabc0_0000 + slot as u32 },
            source: "web".into(),
            group: "db".into(),
            cut_wall: cut.parse().expect("a time"),
            cut_mono_before_ns: 1,
            cut_mono_after_ns: 2,
            boot: String::new(),
            ledger_time_ms: 0,
            members: vec![PointMember {
                volume: "log".into(),
                volume_id: String::new(),
                bytes: 4096,
                term: 0,
                seq: slot,
                layer_bytes: None,
            }],
            pinned: false,
            pins: Vec::new(),
            degraded: false,
            verified: Vec::new(),
            consistency: Consistency::Crash,
            cut: None,
            title: String::new(),
            hooks: String::new(),
        }
    }

    #[test]
    fn every_way_to_name_a_point_is_understood() {
        let parse = |s: &str| s.parse::<PointRef>();
        assert_eq!(parse("latest"), Ok(PointRef::Latest));
        assert_eq!(parse("42"), Ok(PointRef::Id { slot: 42, tag: None }));
        assert_eq!(parse("42-9f3c2a1b"), Ok(PointRef::Id { slot: 42, tag: Some(0x9f3c_2a1b) }));
        assert_eq!(parse("-5m"), Ok(PointRef::Ago(SignedDuration::from_secs(300))));
        assert_eq!(parse("-1d2h3m4s"), Ok(PointRef::Ago(SignedDuration::from_secs(93_784))));
        assert!(matches!(parse("2026-03-01T12:00:00Z"), Ok(PointRef::At(_))));
        assert!(matches!(parse("2026-03-01T12:00:00.5+01:00"), Ok(PointRef::At(_))));
        for bad in [
            "",
            "-",
            "-5",
            "-m",
            "-5x",
            "--5m",
            "42-",
            "42-9f3c",
            "42-9f3c2a1b0",
            "x",
            "2026-03-01",
            "5m",
            "-99999999999999999999d",
            "-5é",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_survive_printing_and_json() {
        let id = PointId::new(7, &[0x01; 32]);
        assert_eq!(id.to_string(), "7-01010101");
        let json = serde_json::to_string(&id).expect("json");
        assert_eq!(json, "\"7-01010101\"");
        assert_eq!(serde_json::from_str::<PointId>(&json).expect("an id"), id);
        assert!(serde_json::from_str::<PointId>("\"7\"").is_err());
    }

    #[test]
    fn the_newest_point_that_fits_is_chosen() {
        let points = [point(3, "2026-03-01T12:00:00Z"), point(9, "2026-03-01T12:10:00Z"), point(5, "2026-03-01T12:05:00Z")];
        let now = "2026-03-01T12:11:00Z".parse().expect("a time");
        let chosen = |s: &str| select_point(&points, s.parse().expect("a point"), now).map(|p| p.id.slot);
        assert_eq!(chosen("latest"), Some(9));
        assert_eq!(chosen("-5m"), Some(5));
        assert_eq!(chosen("-1m"), Some(9));
        assert_eq!(chosen("-1h"), None);
        assert_eq!(chosen("2026-03-01T12:00:00Z"), Some(3));
        assert_eq!(chosen("2026-03-01T11:59:59Z"), None);
        assert_eq!(chosen("5"), Some(5));
        assert_eq!(chosen("5-abc00005"), Some(5));
        assert_eq!(chosen("5-abc00006"), None);
    }

    /// Whoever holds the points in the order of their slots finds the same one without looking at all of them.
    #[test]
    fn a_search_finds_what_is_chosen_among_all() {
        // The clock was put back between two of them.
        let times = ["12:00", "12:20", "12:10", "12:15", "12:30"];
        let points: Vec<Point> =
            times.iter().zip(3..).map(|(time, slot)| point(slot * 2, &format!("2026-03-01T{time}:00Z"))).collect();
        let now = "2026-03-01T12:31:00Z".parse().expect("a time");
        let all = [
            "latest",
            "-1m",
            "-2m",
            "-15m",
            "-16m",
            "-1h",
            "2026-03-01T12:12:00Z",
            "6",
            "7",
            "14",
            "15",
            "8-abc00008",
            "8-abc00009",
        ];
        for wanted in all {
            let wanted: PointRef = wanted.parse().expect("a point");
            let search = wanted.search(now);
            let within = |p: &&Point| search.below.is_none_or(|b| p.id.slot < b) && search.until.is_none_or(|u| p.cut_wall <= u);
            let found = points.iter().rev().find(within).filter(|p| search.is_meant(p.id));
            assert_eq!(found, select_point(&points, wanted, now), "{wanted}");
        }
        let last = PointRef::Id { slot: u64::MAX, tag: None }.search(now);
        assert!(last.below.is_none() && !last.is_meant(points[0].id));
    }

    #[test]
    fn addresses_name_volumes_and_groups() {
        let point = point(1, "2026-03-01T12:00:00Z");
        let is_of = |s: &str| point.is_of(&s.parse().expect("an address"));
        for yes in ["log", "db", "web/log", "db/log", "web/db", "web/db/log"] {
            assert!(is_of(yes), "{yes}");
        }
        let within = |s: &str| s.parse::<Address>().expect("an address").within("web", "db").map(|v| v.map(str::to_owned));
        assert_eq!(within("db"), Some(None));
        assert_eq!(within("web/db/log"), Some(Some("log".into())));
        assert_eq!(within("log"), Some(Some("log".into())));
        assert_eq!(within("other/log"), None);
        for no in ["data", "web", "other/log", "other/db", "web/other/log", "web/db/db", "db/db"] {
            assert!(!is_of(no), "{no}");
        }
        for bad in ["", "/", "a//b", "a/b/c/d", "a/"] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }
}
