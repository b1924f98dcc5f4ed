//! Every path of the API, written once. The `{…}` form is what axum's router takes; the functions fill it in.

use jiff::Timestamp;

/// `GET`: [`SourceStatus`](crate::source::SourceStatus) on a source, [`ReceiverStatus`](crate::receiver::ReceiverStatus)
/// on a receiver.
pub const STATUS: &str = "/v1/status";

/// Source, `POST` [`PairRequest`](crate::source::PairRequest): [`Paired`](crate::source::Paired). `DELETE`: forgets the
/// receiver and ends the connections to it; [`Done`](crate::source::Done).
pub const PAIR: &str = "/v1/pair";

/// Source, `PATCH` [`GroupSettings`](crate::source::GroupSettings): the changed
/// [`GroupStatus`](crate::source::GroupStatus).
pub const GROUP: &str = "/v1/groups/{group}";

/// Source, `POST` [`PointWanted`](crate::source::PointWanted): a point of all volumes of the group is made now; when it is published,
/// [`PointTaken`](crate::source::PointTaken).
pub const GROUP_TAKE: &str = "/v1/groups/{group}/take";

/// Source, `GET`: all [`VolumeStatus`](crate::source::VolumeStatus); `POST` [`VolumeAdd`](crate::source::VolumeAdd): the
/// new one.
pub const VOLUMES: &str = "/v1/volumes";

/// Source, `GET`: one [`VolumeStatus`](crate::source::VolumeStatus); `DELETE`: [`Done`](crate::source::Done).
pub const VOLUME: &str = "/v1/volumes/{volume}";

/// Source, `POST`: stop replicating, keep serving and tracking. [`VolumeStatus`](crate::source::VolumeStatus).
pub const VOLUME_PAUSE: &str = "/v1/volumes/{volume}/pause";

/// Source, `POST`: the end of a pause. [`VolumeStatus`](crate::source::VolumeStatus).
pub const VOLUME_RESUME: &str = "/v1/volumes/{volume}/resume";

/// Source, `POST` [`ResyncRequest`](crate::source::ResyncRequest): compare the whole volume and ship what differs.
/// [`VolumeStatus`](crate::source::VolumeStatus).
pub const VOLUME_RESYNC: &str = "/v1/volumes/{volume}/resync";

/// Source, `POST`: compare the whole volume with what is published, or join the verify under way; its progress and result
/// are in [`VolumeStatus`](crate::source::VolumeStatus), which is the answer.
pub const VOLUME_VERIFY: &str = "/v1/volumes/{volume}/verify";

/// Source, `GET` and `PUT`: [`Limits`](crate::source::Limits), in force from then on, also after a restart.
pub const LIMITS: &str = "/v1/limits";

/// Both, `GET` with [`PointsQuery`]: `Vec<`[`Point`](crate::Point)`>`, newest first. A source asks its
/// receiver.
pub const POINTS: &str = "/v1/points";

/// Both, `GET` with [`PagesQuery`]: one [`PointPage`](crate::PointPage) of the points that are wanted, newest first.
pub const POINT_PAGES: &str = "/v1/point-pages";

/// Both, `GET` with [`PointsQuery`] (`of` may be left out for an id): one [`Point`](crate::Point). `{point}`
/// is a [`PointRef`](crate::PointRef).
pub const POINT: &str = "/v1/points/{point}";

/// Receiver, `POST` [`PinRequest`](crate::PinRequest): never prune it. `DELETE` with
/// [`UnpinQuery`]: withdraw what it is pinned for, but for legal holds. With
/// [`PointsQuery`] like [`POINT`]; the [`Point`](crate::Point) as it is then.
pub const POINT_PIN: &str = "/v1/points/{point}/pin";

/// Receiver, `POST` [`HoldRequest`](crate::HoldRequest) with [`PointsQuery`]: put it under legal hold, which only
/// [`POINT_RELEASE`] of the same case ends; the [`Point`](crate::Point) as it is then.
pub const POINT_HOLD: &str = "/v1/points/{point}/hold";

/// Receiver, `POST` [`HoldRequest`](crate::HoldRequest) with [`PointsQuery`]: end the legal hold of that case; the
/// [`Point`](crate::Point) as it is then.
pub const POINT_RELEASE: &str = "/v1/points/{point}/release";

/// Receiver, `POST` with [`PointsQuery`] (`of` a volume: only that member): begins to read the whole point and to check
/// every granule. [`Verification`](crate::Verification); one at a time.
pub const POINT_VERIFY: &str = "/v1/points/{point}/verify";

/// Receiver, `GET`: the newest [`Verification`](crate::Verification). It stops when nobody asks for it for a while.
/// `DELETE`: stops it.
pub const VERIFICATION: &str = "/v1/verification";

/// Receiver, `POST` [`TokenRequest`](crate::receiver::TokenRequest): [`Token`](crate::receiver::Token).
pub const TOKENS: &str = "/v1/tokens";

/// Both, `GET`: metrics as OpenMetrics text (`docs/metrics.md`).
pub const METRICS: &str = "/metrics";

/// Both, `POST` with nothing: read the configuration again. [`Reloaded`](crate::Reloaded).
pub const RELOAD: &str = "/v1/reload";

/// Receiver, `DELETE`: forgets the certificate of a source and closes its connections; its points stay.
/// [`Done`](crate::source::Done).
pub const SOURCE: &str = "/v1/sources/{source}";

/// Receiver, `GET`: all [`CohortStatus`](crate::cohort::CohortStatus).
pub const COHORTS: &str = "/v1/cohorts";

/// Receiver, `DELETE`: points of a cohort that the configuration has no more are kept as all others of their groups from now on.
pub const COHORT: &str = "/v1/cohorts/{cohort}";

/// Receiver, `GET` with [`PointsQuery`] (only its limit counts): the newest [`CohortCut`](crate::cohort::CohortCut)s of which every group has
/// its point. `POST`: cut it now; [`Done`](crate::source::Done).
pub const COHORT_CUTS: &str = "/v1/cohorts/{cohort}/cuts";

/// Receiver, `GET`: all [`FollowerStatus`](crate::follower::FollowerStatus); `POST`
/// [`FollowerAdd`](crate::follower::FollowerAdd): the new one.
pub const FOLLOWERS: &str = "/v1/followers";

/// Receiver, `GET`: one [`FollowerStatus`](crate::follower::FollowerStatus); `DELETE`: [`Done`](crate::source::Done).
pub const FOLLOWER: &str = "/v1/followers/{follower}";

/// Receiver, `POST`: close the target and leave it alone. [`FollowerStatus`](crate::follower::FollowerStatus).
pub const FOLLOWER_PAUSE: &str = "/v1/followers/{follower}/pause";

/// Receiver, `POST`: the end of a pause. [`FollowerStatus`](crate::follower::FollowerStatus).
pub const FOLLOWER_RESUME: &str = "/v1/followers/{follower}/resume";

/// Receiver, `POST`: compare all of the target with the point that it holds.
/// [`FollowerStatus`](crate::follower::FollowerStatus), which shows how far that is.
pub const FOLLOWER_VERIFY: &str = "/v1/followers/{follower}/verify";

/// Receiver, `POST`: compare all of the target with its point, and overwrite what differs.
/// [`FollowerStatus`](crate::follower::FollowerStatus).
pub const FOLLOWER_HEAL: &str = "/v1/followers/{follower}/heal";

/// Source, `GET`: all [`FailbackStatus`](crate::failback::FailbackStatus); `POST`
/// [`FailbackRequest`](crate::failback::FailbackRequest): how it is then.
pub const FAILBACKS: &str = "/v1/failbacks";

/// Source, `GET`: all [`BranchStatus`](crate::failback::BranchStatus).
pub const BRANCHES: &str = "/v1/branches";

/// Source, `DELETE`: removes it. [`BranchStatus`](crate::failback::BranchStatus), as it was.
pub const BRANCH: &str = "/v1/branches/{branch}";

/// Source, `POST` [`CutoverRequest`](crate::failback::CutoverRequest): how it is then.
/// [`FAILBACKS`] lists it, too.
pub const CUTOVERS: &str = "/v1/cutovers";

/// Source, `POST` [`RollbackRequest`](crate::rollback::RollbackRequest):
/// [`RollbackStatus`](crate::rollback::RollbackStatus).
pub const ROLLBACKS: &str = "/v1/rollbacks";

/// Receiver, `GET`: all [`FailoverStatus`](crate::failover::FailoverStatus); `POST`
/// [`FailoverRequest`](crate::failover::FailoverRequest): the one that was begun or planned.
pub const FAILOVERS: &str = "/v1/failovers";

/// The query string of [`POINTS`] and [`POINT`].
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PointsQuery {
    /// An [`Address`](crate::Address): a volume or a group.
    pub of: Option<String>,
    /// At most so many, the newest ones; at most [`POINTS_LISTED_MAX`](crate::POINTS_LISTED_MAX).
    pub limit: Option<u32>,
}

/// The query string of [`POINT_PIN`] where pins are withdrawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UnpinQuery {
    /// An [`Address`](crate::Address): a volume or a group.
    pub of: Option<String>,
    /// Also those by which the gateway keeps the point for itself: for a failover, for a branch of a host, while it is verified. Legal holds
    /// stay in any case.
    pub all: bool,
}

/// The query string of [`POINT_PAGES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PagesQuery {
    /// An [`Address`](crate::Address): a volume or a group.
    pub of: Option<String>,
    /// Only points cut then or later, by the source's clock.
    pub since: Option<Timestamp>,
    /// Only points cut then or earlier.
    pub until: Option<Timestamp>,
    /// Only pinned points.
    pub pinned: bool,
    /// Only points with a pin whose reason contains this text, capital letters or not.
    pub reason: Option<String>,
    /// Only points that were verified.
    pub verified: bool,
    /// Only points for which applications were quiesced.
    pub consistent: bool,
    /// Only points whose title, or what their hooks said, or the id of the cut of several groups that they are of, contains this text, capital
    /// letters or not.
    pub label: Option<String>,
    /// At most so many in this page; at most [`POINTS_PAGE_MAX`](crate::POINTS_PAGE_MAX).
    pub limit: Option<u32>,
    /// Where the page before ended: its `next`. All else must be as it was asked then.
    pub cursor: Option<String>,
}

/// [`SOURCE`] of one source.
pub fn source(name: &str) -> String {
    fill(SOURCE, name)
}

/// One of the paths of followers, for one of them.
pub fn follower(path: &str, name: &str) -> String {
    fill(path, name)
}

/// [`COHORT`] of one.
pub fn one_cohort(name: &str) -> String {
    fill(COHORT, name)
}

/// [`COHORT_CUTS`] of one.
pub fn cohort(name: &str) -> String {
    fill(COHORT_CUTS, name)
}

/// [`COHORT_CUTS`] with a query.
pub fn cohort_cuts(name: &str, query: &PointsQuery) -> String {
    with_query(cohort(name), query)
}

/// [`BRANCH`] of one.
pub fn branch(id: &str) -> String {
    fill(BRANCH, id)
}

/// [`GROUP`] of one group.
pub fn group(name: &str) -> String {
    fill(GROUP, name)
}

/// [`GROUP_TAKE`] of one group.
pub fn group_take(name: &str) -> String {
    fill(GROUP_TAKE, name)
}

/// [`VOLUME`] of one volume.
pub fn volume(name: &str) -> String {
    fill(VOLUME, name)
}

/// [`VOLUME_PAUSE`] of one volume.
pub fn volume_pause(name: &str) -> String {
    fill(VOLUME_PAUSE, name)
}

/// [`VOLUME_RESUME`] of one volume.
pub fn volume_resume(name: &str) -> String {
    fill(VOLUME_RESUME, name)
}

/// [`VOLUME_RESYNC`] of one volume.
pub fn volume_resync(name: &str) -> String {
    fill(VOLUME_RESYNC, name)
}

/// [`VOLUME_VERIFY`] of one volume.
pub fn volume_verify(name: &str) -> String {
    fill(VOLUME_VERIFY, name)
}

/// [`POINTS`] with its query.
pub fn points(query: &PointsQuery) -> String {
    with_query(POINTS.to_owned(), query)
}

/// [`POINT_PIN`] with its query.
pub fn point_pin(point: &str, query: &PointsQuery) -> String {
    with_query(fill(POINT_PIN, point), query)
}

/// [`POINT_HOLD`] with its query.
pub fn point_hold(point: &str, query: &PointsQuery) -> String {
    with_query(fill(POINT_HOLD, point), query)
}

/// [`POINT_RELEASE`] with its query.
pub fn point_release(point: &str, query: &PointsQuery) -> String {
    with_query(fill(POINT_RELEASE, point), query)
}

/// [`POINT_PIN`] with the query of withdrawing.
pub fn point_unpin(point: &str, query: &UnpinQuery) -> String {
    with_pairs(fill(POINT_PIN, point), [("of", query.of.clone()), ("all", query.all.then(|| "true".to_owned()))])
}

/// [`POINT_VERIFY`] with its query.
pub fn point_verify(point: &str, query: &PointsQuery) -> String {
    with_query(fill(POINT_VERIFY, point), query)
}

/// [`POINT`] with its query.
pub fn point(point: &str, query: &PointsQuery) -> String {
    with_query(fill(POINT, point), query)
}

/// [`POINT_PAGES`] with its query.
pub fn point_pages(query: &PagesQuery) -> String {
    let PagesQuery { of, since, until, pinned, reason, verified, consistent, label, limit, cursor } = query;
    let pairs = [
        ("of", of.clone()),
        ("since", since.map(|at| at.to_string())),
        ("until", until.map(|at| at.to_string())),
        ("pinned", pinned.then(|| "true".to_owned())),
        ("reason", reason.clone()),
        ("verified", verified.then(|| "true".to_owned())),
        ("consistent", consistent.then(|| "true".to_owned())),
        ("label", label.clone()),
        ("limit", limit.map(|limit| limit.to_string())),
        ("cursor", cursor.clone()),
    ];
    with_pairs(POINT_PAGES.to_owned(), pairs)
}

fn with_query(path: String, query: &PointsQuery) -> String {
    with_pairs(path, [("of", query.of.clone()), ("limit", query.limit.map(|limit| limit.to_string()))])
}

fn with_pairs<const N: usize>(mut path: String, pairs: [(&str, Option<String>); N]) -> String {
    let mut lead = '?';
    for (key, value) in pairs.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        path.push(lead);
        path.push_str(key);
        path.push('=');
        path.push_str(&escape(&value));
        lead = '&';
    }
    path
}

fn fill(template: &str, value: &str) -> String {
    let (open, close) = (template.find('{').expect("a template has a hole"), template.find('}').expect("a hole ends"));
    format!("{}{}{}", &template[..open], escape(value), &template[close + 1..])
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_person_typed_stays_one_path_segment() {
        assert_eq!(volume("data"), "/v1/volumes/data");
        assert_eq!(volume_pause("a/../b?c=d"), "/v1/volumes/a%2F..%2Fb%3Fc%3Dd/pause");
        assert_eq!(
            point("2026-01-02T03:04:05+01:00", &PointsQuery { of: Some("web/db".into()), limit: Some(3) }),
            "/v1/points/2026-01-02T03%3A04%3A05%2B01%3A00?of=web%2Fdb&limit=3"
        );
        assert_eq!(points(&PointsQuery::default()), "/v1/points");
        let since = "2026-01-02T03:04:05Z".parse().ok();
        let wanted = PagesQuery { since, reason: Some("a & b".into()), cursor: Some("web/db@7".into()), ..PagesQuery::default() };
        assert_eq!(point_pages(&wanted), "/v1/point-pages?since=2026-01-02T03%3A04%3A05Z&reason=a%20%26%20b&cursor=web%2Fdb%407");
    }
}
