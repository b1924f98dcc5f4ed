//! The receiver's API on its Unix socket. Types and routes are `farside_control`'s.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use farside_control::cohort::{CohortCut, CohortStatus};
use farside_control::failover::{FailoverRequest, FailoverStatus};
use farside_control::follower::{FollowerAdd, FollowerStatus};
use farside_control::receiver::{ReceiverStatus, Token, TokenRequest};
use farside_control::routes::{self, PagesQuery, PointsQuery, UnpinQuery};
use farside_control::source::Done;
use farside_control::{
    Address, ApiError, ErrorCode, HOLD_REASONS, HoldRequest, PIN_REASON_BYTES_MAX, POINTS_LISTED_MAX, PageMaker, PinRequest,
    Point, PointPage, PointRef, Reloaded, TooManyGroups, Verification, no_such_point,
};
use farside_ledger::PointFilter;
use farside_region::{Name, Slot};
use farside_service::clients::Clients;
use farside_service::http::{self, Answer, Failed, Routes, Told};
use farside_store::PointsFound;
use farside_transport::BookError;
use jiff::Timestamp;
use tokio::net::UnixListener;

use crate::cohort::{self, Cohorts};
use crate::follow::Followers;
use crate::group::{GroupHandle, PointChange};
use crate::points::PointsAsk;
use crate::process::Receiver;
use crate::status;

const HOUR_S: u64 = 3600;
/// Cuts of a cohort that are listed unless more are asked for.
const CUTS_LISTED: usize = 20;
/// A token that is good for longer is an open door.
const TOKEN_LIFETIME_S_MAX: u64 = 30 * 24 * HOUR_S;

/// Answers until the task is dropped.
pub(crate) async fn serve(receiver: Arc<Receiver>, listener: UnixListener) {
    let router = routes().with_state(receiver);
    if let Err(error) = axum::serve(Clients::new(listener), router).await {
        tracing::error!(%error, "the API ended");
    }
}

/// What is served; `farside_control::openapi` describes it.
fn routes() -> Routes<Arc<Receiver>> {
    Routes::default()
        .get(routes::STATUS, status)
        .get(routes::POINTS, points)
        .with_query()
        .get(routes::POINT_PAGES, point_pages)
        .with_query()
        .get(routes::POINT, point)
        .with_query()
        .post(routes::POINT_PIN, pin)
        .with_query()
        .post(routes::POINT_HOLD, hold)
        .with_query()
        .post(routes::POINT_RELEASE, release)
        .with_query()
        .delete(routes::POINT_PIN, unpin)
        .with_query()
        .post(routes::POINT_VERIFY, verify)
        .with_query()
        .get(routes::VERIFICATION, verification)
        .delete(routes::VERIFICATION, verification_stop)
        .get(routes::FAILOVERS, failovers)
        .post(routes::FAILOVERS, failover)
        .get(routes::COHORTS, cohorts)
        .get(routes::COHORT_CUTS, cohort_cuts)
        .with_query()
        .post(routes::COHORT_CUTS, cohort_take)
        .delete(routes::COHORT, cohort_forget)
        .get(routes::FOLLOWERS, followers)
        .post(routes::FOLLOWERS, follower_add)
        .get(routes::FOLLOWER, follower)
        .delete(routes::FOLLOWER, follower_remove)
        .post(routes::FOLLOWER_PAUSE, follower_pause)
        .post(routes::FOLLOWER_RESUME, follower_resume)
        .post(routes::FOLLOWER_VERIFY, follower_verify)
        .post(routes::FOLLOWER_HEAL, follower_heal)
        .post(routes::TOKENS, token)
        .get(routes::METRICS, metrics)
        .post(routes::RELOAD, reload)
        .delete(routes::SOURCE, unpair)
}

type Here = State<Arc<Receiver>>;

fn bad_request(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, error.to_string(), "")
}

async fn status(State(receiver): Here) -> Answer<ReceiverStatus> {
    let asked: Vec<_> = receiver.roster.all().into_iter().map(|group| tokio::spawn(group.refresh())).collect();
    for answer in asked {
        let _ = answer.await;
    }
    // Asking a file system that hangs must not take the runtime with it.
    let made = tokio::task::spawn_blocking(move || status::receiver(&receiver)).await;
    Ok(Json(made.map_err(ApiError::internal)?))
}

async fn metrics(State(receiver): Here) -> Result<Response, Failed> {
    let made = tokio::task::spawn_blocking(move || crate::metrics::page(&status::receiver(&receiver))).await;
    let text = made.map_err(ApiError::internal)?;
    Ok(http::metrics(text))
}

async fn reload(State(receiver): Here) -> Answer<Reloaded> {
    let read = tokio::task::spawn_blocking(move || receiver.reload()).await.map_err(ApiError::internal)?;
    let invalid = |error: crate::ConfigError| {
        let what = "mend that and reload again; until then the running configuration stays";
        ApiError::new(ErrorCode::Conflict, error.to_string(), what)
    };
    Ok(Json(read.map_err(invalid)?))
}

async fn points(State(receiver): Here, query: Result<Query<PointsQuery>, QueryRejection>) -> Answer<Vec<Point>> {
    let Query(query) = query?;
    let mut page = PageMaker::newest(query.limit);
    gather(&receiver, query.of.as_deref(), &PointFilter::default(), &mut page).await?;
    Ok(Json(page.points()))
}

async fn point_pages(State(receiver): Here, query: Result<Query<PagesQuery>, QueryRejection>) -> Answer<PointPage> {
    let Query(query) = query?;
    let mut page = PageMaker::for_query(&query).map_err(bad_request)?;
    gather(&receiver, query.of.as_deref(), &filter_of(&query), &mut page).await?;
    let too_many = |error: TooManyGroups| ApiError::new(ErrorCode::BadRequest, error.to_string(), "say of which volume or group");
    Ok(Json(page.page().map_err(too_many)?))
}

async fn point(
    State(receiver): Here,
    Path(wanted): Path<String>,
    query: Result<Query<PointsQuery>, QueryRejection>,
) -> Answer<Point> {
    Ok(Json(find_point(&receiver, &wanted, &query?.0).await?))
}

async fn pin(
    State(receiver): Here,
    Path(wanted): Path<String>,
    query: Result<Query<PointsQuery>, QueryRejection>,
    request: Result<Told<PinRequest>, Failed>,
) -> Answer<Point> {
    let Told(PinRequest { reason }) = request?;
    if reason.starts_with(HOLD_REASONS) {
        let text = format!("reasons that begin with {HOLD_REASONS:?} are those of legal holds");
        return Err(ApiError::new(ErrorCode::BadRequest, text, "farside point hold POINT --case TEXT makes one").into());
    }
    pin_for(&receiver, &wanted, &query?.0, reason).await
}

async fn hold(
    State(receiver): Here,
    Path(wanted): Path<String>,
    query: Result<Query<PointsQuery>, QueryRejection>,
    request: Result<Told<HoldRequest>, Failed>,
) -> Answer<Point> {
    let Told(HoldRequest { case }) = request?;
    if case.trim().is_empty() {
        return Err(ApiError::new(ErrorCode::BadRequest, "a legal hold names its case", "say which: --case TEXT").into());
    }
    pin_for(&receiver, &wanted, &query?.0, format!("{HOLD_REASONS}{case}")).await
}

async fn release(
    State(receiver): Here,
    Path(wanted): Path<String>,
    query: Result<Query<PointsQuery>, QueryRejection>,
    request: Result<Told<HoldRequest>, Failed>,
) -> Answer<Point> {
    let Told(HoldRequest { case }) = request?;
    change_pin(&receiver, &wanted, &query?.0, PointChange::Release { case }).await
}

async fn pin_for(receiver: &Arc<Receiver>, wanted: &str, query: &PointsQuery, reason: String) -> Answer<Point> {
    if reason.len() > PIN_REASON_BYTES_MAX {
        let text = format!("a reason has at most {PIN_REASON_BYTES_MAX} bytes; this one has {}", reason.len());
        return Err(ApiError::new(ErrorCode::BadRequest, text, "say it shorter").into());
    }
    change_pin(receiver, wanted, query, PointChange::Pin { reason }).await
}

async fn unpin(
    State(receiver): Here,
    Path(wanted): Path<String>,
    query: Result<Query<UnpinQuery>, QueryRejection>,
) -> Answer<Point> {
    let Query(UnpinQuery { of, all }) = query?;
    change_pin(&receiver, &wanted, &PointsQuery { of, limit: None }, PointChange::UnpinFor { all }).await
}

async fn change_pin(receiver: &Arc<Receiver>, wanted: &str, query: &PointsQuery, change: PointChange) -> Answer<Point> {
    let point = find_point(receiver, wanted, query).await?;
    let group = group_of(receiver, &point)?;
    let info = group.change(point.id, change).await?;
    Ok(Json(status::point(group.names(), &info)))
}

async fn verify(
    State(receiver): Here,
    Path(wanted): Path<String>,
    query: Result<Query<PointsQuery>, QueryRejection>,
) -> Answer<Verification> {
    let Query(query) = query?;
    let point = find_point(&receiver, &wanted, &query).await?;
    let group = group_of(&receiver, &point)?;
    // A name that is the group's means all of it.
    let address: Option<Address> = query.of.as_deref().map(str::parse).transpose().map_err(bad_request)?;
    let volume = address.filter(|a| !a.is_group(&point.source, &point.group)).map(|a| a.name().to_owned());
    Ok(Json(receiver.verifications.start(&receiver, group, point, volume.as_deref())?))
}

async fn verification(State(receiver): Here) -> Answer<Verification> {
    Ok(Json(receiver.verifications.show()?))
}

async fn verification_stop(State(receiver): Here) -> Answer<Verification> {
    Ok(Json(receiver.verifications.stop()?))
}

/// The group that a point is of.
fn group_of(receiver: &Receiver, point: &Point) -> Result<GroupHandle, ApiError> {
    let is_it =
        |group: &GroupHandle| group.names().source.as_str() == point.source && group.names().group.as_str() == point.group;
    let missing = || ApiError::not_found("group", &format!("{}/{}", point.source, point.group), "");
    receiver.roster.all().into_iter().find(is_it).ok_or_else(missing)
}

/// The one point that is meant.
async fn find_point(receiver: &Arc<Receiver>, wanted: &str, query: &PointsQuery) -> Result<Point, ApiError> {
    let wanted: PointRef = wanted.parse().map_err(bad_request)?;
    let search = wanted.search(Timestamp::now());
    let until_wall_ms = search.until.map(|at| at.as_millisecond());
    let filter = PointFilter { until_wall_ms, consistent: search.consistent, ..PointFilter::default() };
    let mut found = Vec::new();
    let places = places(receiver, query.of.as_deref())?;
    for (group, volume) in &places {
        let ask = PointsAsk { volume: volume.clone(), filter: filter.clone(), below: search.below.map(Slot), limit: 1 };
        let newest = points_of(receiver, group, ask).await?;
        found.extend(newest.points.iter().map(|p| status::point(group.names(), p)).filter(|p| search.is_meant(p.id)));
    }
    if found.len() > 1 {
        let groups: Vec<_> = found.iter().map(|p| format!("{}/{}", p.source, p.group)).collect();
        let message = format!("`{wanted}` may be a point of {}", groups.join(", "));
        return Err(ApiError::new(ErrorCode::BadRequest, message, "say of which volume or group"));
    }
    if let Some(point) = found.pop() {
        return Ok(point);
    }
    refuse_unknown(query.of.as_deref(), &places)?;
    let mut ends = Vec::new();
    for (group, volume) in places {
        let ask = PointsAsk { volume, ..PointsAsk::default() };
        if let Ok(Some((oldest, newest))) = group.point_ends(ask).await {
            ends.extend([oldest, newest].map(|p| status::point(group.names(), &p)));
        }
    }
    Err(no_such_point(&ends, wanted, query.of.as_deref()))
}

/// The groups in which an address may name something, and what volume it would be: `None`, the whole group.
fn places(receiver: &Receiver, of: Option<&str>) -> Result<Vec<(GroupHandle, Option<String>)>, ApiError> {
    let address: Option<Address> = of.map(str::parse).transpose().map_err(bad_request)?;
    let place = |group: GroupHandle| {
        let names = group.names();
        let volume = match &address {
            None => None,
            Some(address) => address.within(names.source.as_str(), names.group.as_str())?.map(str::to_owned),
        };
        Some((group, volume))
    };
    Ok(receiver.roster.all().into_iter().filter_map(place).collect())
}

/// Where no point was found: perhaps there is nothing of that name.
fn refuse_unknown(of: Option<&str>, places: &[(GroupHandle, Option<String>)]) -> Result<(), ApiError> {
    let Some(of) = of else { return Ok(()) };
    let address: Address = of.parse().map_err(bad_request)?;
    let known = |(group, volume): &(GroupHandle, Option<String>)| volume.is_none() || group.view().has_volume(&address);
    match places.iter().any(known) {
        true => Ok(()),
        false => Err(ApiError::not_found("volume or group", of, "`farside status` lists what the store holds")),
    }
}

/// The points that a query means, of any volume.
pub fn filter_of(query: &PagesQuery) -> PointFilter {
    PointFilter {
        volume: None,
        since_wall_ms: query.since.map(|at| at.as_millisecond()),
        until_wall_ms: query.until.map(|at| at.as_millisecond()),
        pinned: query.pinned,
        reason: query.reason.clone(),
        verified: query.verified,
        consistent: query.consistent,
        label: query.label.clone(),
    }
}

/// Fills a page with the points of what an address names.
async fn gather(receiver: &Arc<Receiver>, of: Option<&str>, filter: &PointFilter, page: &mut PageMaker) -> Result<(), ApiError> {
    let (places, mut any) = (places(receiver, of)?, false);
    for (group, volume) in &places {
        let names = group.names();
        let below = page.below(names.source.as_str(), names.group.as_str()).map(Slot);
        let ask = PointsAsk { volume: volume.clone(), filter: filter.clone(), below, limit: page.limit() };
        let found = points_of(receiver, group, ask).await?;
        any |= below.is_some() || !found.points.is_empty();
        page.add(found.points.iter().map(|point| status::point(names, point)), found.more, found.total);
        page.may_hide(group.view().torn());
    }
    if any { Ok(()) } else { refuse_unknown(of, &places) }
}

/// What a group answers; from the store itself, if that can be read and not written.
async fn points_of(receiver: &Arc<Receiver>, group: &GroupHandle, ask: PointsAsk) -> Result<PointsFound, ApiError> {
    if let Ok(found) = group.points(ask.clone()).await {
        return Ok(found);
    }
    let (receiver, names) = (Arc::clone(receiver), group.names().clone());
    let read = tokio::task::spawn_blocking(move || {
        let found = receiver.schedule.found(&names);
        Ok(ask.find(receiver.vault.reader()?.group(&names)?.state(), &found))
    });
    read.await.map_err(ApiError::internal)?.map_err(|error: farside_store::StoreError| {
        ApiError::new(ErrorCode::Unavailable, error.to_string(), "it goes on by itself when the store answers again")
    })
}

async fn failovers(State(receiver): Here) -> Answer<Vec<FailoverStatus>> {
    let shown = tokio::task::spawn_blocking(move || receiver.failovers.show(&receiver));
    Ok(Json(shown.await.map_err(ApiError::internal)?))
}

async fn failover(State(receiver): Here, request: Result<Told<FailoverRequest>, Failed>) -> Answer<FailoverStatus> {
    let Told(request) = request?;
    let begun = tokio::task::spawn_blocking(move || receiver.failovers.begin(&receiver, &request));
    Ok(Json(begun.await.map_err(ApiError::internal)??))
}

async fn cohorts(State(receiver): Here) -> Answer<Vec<CohortStatus>> {
    Ok(Json(cohort::show(&receiver).await))
}

fn no_such_cohort(name: &str) -> ApiError {
    ApiError::not_found("cohort", name, "`farside cohort list` shows those that receiver.toml has")
}

async fn cohort_cuts(
    State(receiver): Here,
    Path(name): Path<String>,
    query: Result<Query<PointsQuery>, QueryRejection>,
) -> Answer<Vec<CohortCut>> {
    let Query(query) = query?;
    let unknown = |why: String| ApiError::new(ErrorCode::Unavailable, why, "see `farside status`; then try again");
    let mut cuts = cohort::points(&receiver, &name).await.map_err(unknown)?;
    if cuts.is_empty() && receiver.config().cohorts.iter().all(|cohort| cohort.name.as_str() != name) {
        return Err(no_such_cohort(&name).into());
    }
    cuts.truncate(query.limit.map_or(CUTS_LISTED, |limit| limit as usize).min(POINTS_LISTED_MAX));
    Ok(Json(cuts))
}

async fn cohort_take(State(receiver): Here, Path(name): Path<String>) -> Answer<Done> {
    match receiver.cohorts.wanted(&name) {
        true => Ok(Json(Done { message: format!("cohort {name} is being cut: `farside cohort list` shows what comes of it") })),
        false => Err(no_such_cohort(&name).into()),
    }
}

async fn cohort_forget(State(receiver): Here, Path(name): Path<String>) -> Answer<Done> {
    let known: Name = name.parse().map_err(bad_request)?;
    let unknown = |why: String| ApiError::new(ErrorCode::Unavailable, why, "see `farside status`; then try again");
    let cuts = cohort::cuts_there_are(&receiver, &name).await.map_err(unknown)?;
    if cuts == 0 && receiver.config().cohorts.iter().all(|cohort| cohort.name != known) {
        let what = "no group of the store has a point of a cut of it; `farside point show` names the cohort of a point";
        return Err(ApiError::not_found("cohort", &name, what).into());
    }
    let forgotten = tokio::task::spawn_blocking(move || Cohorts::forget(&receiver, &known));
    forgotten.await.map_err(ApiError::internal)??;
    Ok(Json(Done { message: format!("cohort {name} is forgotten: its points are kept as long as all others of their groups") }))
}

async fn followers(State(receiver): Here) -> Answer<Vec<FollowerStatus>> {
    Ok(Json(receiver.followers.show()))
}

async fn follower(State(receiver): Here, Path(name): Path<String>) -> Answer<FollowerStatus> {
    Ok(Json(receiver.followers.show_one(&name)?))
}

async fn follower_add(State(receiver): Here, request: Result<Told<FollowerAdd>, Failed>) -> Answer<FollowerStatus> {
    let Told(request) = request?;
    let added = tokio::task::spawn_blocking(move || Followers::add(&receiver, request)).await.map_err(ApiError::internal)?;
    Ok(Json(added?))
}

async fn follower_remove(State(receiver): Here, Path(name): Path<String>) -> Answer<Done> {
    let removed = tokio::task::spawn_blocking(move || {
        receiver.followers.remove(&receiver, &name)?;
        Ok::<_, ApiError>(format!("follower {name} is no more; its target stays as it is"))
    });
    Ok(Json(Done { message: removed.await.map_err(ApiError::internal)?? }))
}

async fn follower_pause(State(receiver): Here, Path(name): Path<String>) -> Answer<FollowerStatus> {
    pause_follower(receiver, name, true).await
}

async fn follower_resume(State(receiver): Here, Path(name): Path<String>) -> Answer<FollowerStatus> {
    pause_follower(receiver, name, false).await
}

async fn pause_follower(receiver: Arc<Receiver>, name: String, paused: bool) -> Answer<FollowerStatus> {
    let changed = tokio::task::spawn_blocking(move || receiver.followers.pause(&receiver, &name, paused));
    Ok(Json(changed.await.map_err(ApiError::internal)??))
}

async fn follower_verify(State(receiver): Here, Path(name): Path<String>) -> Answer<FollowerStatus> {
    Ok(Json(receiver.followers.verify(&name)?))
}

async fn follower_heal(State(receiver): Here, Path(name): Path<String>) -> Answer<FollowerStatus> {
    Ok(Json(receiver.followers.heal(&name)?))
}

async fn unpair(State(receiver): Here, Path(source): Path<String>) -> Answer<Done> {
    let name: Name = source.parse().map_err(bad_request)?;
    let unpaired = tokio::task::spawn_blocking(move || receiver.unpair(&name)).await.map_err(ApiError::internal)?;
    match unpaired {
        Ok(true) => {
            let message = format!("{source} is not paired any more; its points stay, and a new token lets it come back");
            Ok(Json(Done { message }))
        }
        Ok(false) => Err(ApiError::not_found("paired source", &source, "`farside status` lists who is paired").into()),
        Err(error) => Err(ApiError::new(ErrorCode::Unavailable, error.to_string(), "see the receiver's log").into()),
    }
}

async fn token(State(receiver): Here, request: Result<Told<TokenRequest>, Failed>) -> Answer<Token> {
    let Told(request) = request?;
    let source = request.source.as_deref().map(str::parse).transpose().map_err(bad_request)?;
    let lifetime_s = request.valid_for_ms.map_or(HOUR_S, |ms| ms.div_ceil(1000));
    if !(1..=TOKEN_LIFETIME_S_MAX).contains(&lifetime_s) {
        let text = "a token is good for a second to 30 days";
        return Err(ApiError::new(ErrorCode::BadRequest, text, "say `--expires 1h`, for example").into());
    }
    let addresses = match request.address {
        Some(address) => vec![address],
        None => receiver.addresses(),
    };
    if addresses.is_empty() {
        let text = "this receiver does not know under which address sources reach it";
        let what = "say `--address HOST:PORT`, or set `receiver.advertise` in its configuration";
        return Err(ApiError::new(ErrorCode::BadRequest, text, what).into());
    }
    let wanted = farside_transport::TokenRequest {
        addresses,
        receiver: receiver.fingerprint,
        lifetime_s,
        source,
        replace: request.replace,
    };
    let made = tokio::task::spawn_blocking(move || {
        let now = status::since_1970().as_secs();
        receiver.book.create_token(wanted, now)
    });
    let token = made.await.map_err(ApiError::internal)?.map_err(|error| match error {
        BookError::Address(_) => bad_request(error),
        BookError::TooManyTokens => ApiError::new(ErrorCode::Busy, error.to_string(), "wait until some have expired"),
        other => ApiError::new(ErrorCode::Unavailable, other.to_string(), "see the receiver's log"),
    })?;
    let expires = i64::try_from(token.expires_unix_s).ok().and_then(|s| Timestamp::from_second(s).ok());
    tracing::info!(source = ?token.source, replace = token.replace, ?expires, "made a pairing token");
    Ok(Json(Token {
        token: token.to_line(),
        address: token.addresses.join(", "),
        fingerprint: token.receiver.to_string(),
        expires: expires.unwrap_or(Timestamp::MAX),
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use farside_control::client::Daemon as Which;
    use farside_control::openapi;

    #[test]
    fn what_is_served_is_described_and_the_other_way_round() {
        let of_receiver = openapi::operations().into_iter().filter(|op| op.daemon == Which::Receiver);
        let described: BTreeSet<_> = of_receiver.map(|op| (op.method, op.path, op.takes_query())).collect();
        let served = super::routes();
        let served = served.served().iter().map(|one| (one.method, one.path, one.takes_query));
        assert_eq!(served.collect::<BTreeSet<_>>(), described);
    }
}
