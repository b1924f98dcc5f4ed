//! The daemon's API on its Unix socket. Types and routes are `farside_control`'s; here they meet the supervisor.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use farside_control::failback::{BranchStatus, CutoverRequest, FailbackRequest, FailbackStatus};
use farside_control::rollback::{RollbackRequest, RollbackStatus};
use farside_control::routes::{self, PagesQuery, PointsQuery};
use farside_control::source::{
    Done, GroupSettings, GroupStatus, Limits, PairRequest, Paired, PointTaken, PointWanted, ResyncRequest, SourceStatus,
    VolumeAdd, VolumeStatus,
};
use farside_control::{
    Address, AddressError, ApiError, ErrorCode, PIN_REASON_BYTES_MAX, POINTS_PAGE_MAX, PageMaker, Point, PointCut, PointId,
    PointMember, PointPage, PointRef, Reloaded,
};
use farside_ledger::PointFilter;
use farside_region::{Name, Slot, VolumeId};
use farside_service::clients::Clients;
use farside_service::http::{self, Answer, Failed, Routes, Told};
use farside_wire::{PointInfo, PointQueryKind};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::status::said_of;
use crate::supervisor::Daemon;

/// When it is tried again to listen, where that cannot be.
const AGAIN: Duration = Duration::from_secs(1);

/// Listens as soon as that can be, and serves, in the background. The second is told when it was tried once.
///
/// † No tap waits for it: a group that is not known this early in a boot, or whatever lies at the socket's path, would take all volumes from
/// their host. Nor is it waited for here: who knows groups may take his time.
pub(crate) fn serve(daemon: &Arc<Daemon>) -> (JoinHandle<()>, oneshot::Receiver<()>) {
    let (tried, is_tried) = oneshot::channel();
    let daemon = daemon.clone();
    let serving = tokio::spawn(async move {
        let listener = listen(&daemon, tried).await;
        let _ = axum::serve(Clients::new(listener), routes().with_state(daemon)).await; // serves until it is aborted
    });
    (serving, is_tried)
}

/// Until it can.
async fn listen(daemon: &Daemon, tried: oneshot::Sender<()>) -> UnixListener {
    let (path, group) = daemon.api_socket();
    let (mut tried, mut said) = (Some(tried), None);
    loop {
        let (at, of) = (path.clone(), group.clone());
        let socket = tokio::task::spawn_blocking(move || farside_service::socket::listen(&at, of.as_deref()));
        let listener = socket.await.map_err(anyhow::Error::from).and_then(|socket| Ok(UnixListener::from_std(socket?)?));
        if let Some(tried) = tried.take() {
            let _ = tried.send(()); // nobody waits any more
        }
        let why = match listener {
            Ok(listener) => {
                if said.is_some() {
                    info!(socket = %path.display(), "the API is there at last");
                }
                return listener;
            }
            Err(error) => farside_service::in_words(error.as_ref()),
        };
        if said.as_ref() != Some(&why) {
            error!("nobody can ask farsided anything: {why}. Volumes are served meanwhile; that is tried again every second");
            said = Some(why);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What is served; `farside_control::openapi` describes it.
fn routes() -> Routes<Arc<Daemon>> {
    Routes::default()
        .get(routes::STATUS, status)
        .post(routes::PAIR, pair)
        .delete(routes::PAIR, unpair)
        .patch(routes::GROUP, set_group)
        .post(routes::GROUP_TAKE, take)
        .get(routes::LIMITS, limits)
        .put(routes::LIMITS, set_limits)
        .get(routes::VOLUMES, volumes)
        .get(routes::FAILBACKS, failbacks)
        .post(routes::FAILBACKS, failback)
        .post(routes::CUTOVERS, cutover)
        .post(routes::ROLLBACKS, roll_back)
        .get(routes::BRANCHES, branches)
        .delete(routes::BRANCH, remove_branch)
        .post(routes::VOLUMES, add)
        .get(routes::VOLUME, volume)
        .delete(routes::VOLUME, remove)
        .post(routes::VOLUME_PAUSE, pause)
        .post(routes::VOLUME_RESUME, resume)
        .post(routes::VOLUME_RESYNC, resync)
        .post(routes::VOLUME_VERIFY, verify)
        .get(routes::POINTS, points)
        .with_query()
        .get(routes::POINT_PAGES, point_pages)
        .with_query()
        .get(routes::POINT, point)
        .with_query()
        .get(routes::METRICS, metrics)
        .post(routes::RELOAD, reload)
}

type Here = State<Arc<Daemon>>;
/// A body that may be nonsense.
type Body<T> = Result<Told<T>, Failed>;

async fn status(State(daemon): Here) -> Json<SourceStatus> {
    Json(daemon.status().await)
}

async fn metrics(State(daemon): Here) -> Response {
    http::metrics(crate::metrics::page(&daemon.status().await))
}

async fn reload(State(daemon): Here) -> Answer<Reloaded> {
    Ok(Json(to_its_end(async move { daemon.reload().await }).await?))
}

async fn pair(State(daemon): Here, request: Body<PairRequest>) -> Answer<Paired> {
    let Told(request) = request?;
    Ok(Json(to_its_end(async move { daemon.pair(&request.token).await }).await?))
}

async fn unpair(State(daemon): Here) -> Answer<Done> {
    let receiver = to_its_end(async move { daemon.unpair().await }).await?;
    Ok(Json(Done { message: format!("this host has forgotten {receiver}; its volumes are served and tracked on") }))
}

async fn set_group(State(daemon): Here, Path(name): Path<String>, settings: Body<GroupSettings>) -> Answer<GroupStatus> {
    let Told(settings) = settings?;
    let now = daemon.set_group(&name, &settings).await?;
    let status = daemon.status().await.groups.into_iter().find(|g| g.name == name);
    // A group without volumes has settings and no status yet.
    Ok(Json(status.unwrap_or_else(|| GroupStatus {
        name,
        epoch_interval_ms: now.epoch_interval_ms.unwrap_or_default(),
        keep: now.keep.unwrap_or_default(),
        span_ms: now.span_ms.unwrap_or_default(),
        grid: now.grid.unwrap_or_default(),
        ..GroupStatus::default()
    })))
}

/// Waits until it is published: whoever hangs up before waits for it no more, and it is made all the same if it was begun.
async fn take(State(daemon): Here, Path(name): Path<String>, wanted: Body<PointWanted>) -> Answer<PointTaken> {
    let Told(wanted) = wanted?;
    Ok(Json(daemon.take_point(&name, wanted).await?))
}

async fn limits(State(daemon): Here) -> Json<Limits> {
    Json(daemon.limits())
}

async fn set_limits(State(daemon): Here, limits: Body<Limits>) -> Answer<Limits> {
    let Told(limits) = limits?;
    Ok(Json(daemon.set_limits(limits).await?))
}

async fn volumes(State(daemon): Here) -> Json<Vec<VolumeStatus>> {
    Json(all_volumes(&daemon).await)
}

/// Those that are served, and those that are configured and are not.
async fn all_volumes(daemon: &Daemon) -> Vec<VolumeStatus> {
    let SourceStatus { groups, unanswered, .. } = daemon.status().await;
    let mut all = daemon.untold(&groups, &unanswered);
    all.extend(groups.into_iter().flat_map(|group| group.volumes));
    all.sort_by(|a, b| (&a.group, &a.name).cmp(&(&b.group, &b.name)));
    all
}

async fn one_volume(daemon: &Daemon, name: &str) -> Answer<VolumeStatus> {
    Ok(Json(
        daemon.volume_named(name).await.ok_or_else(|| ApiError::not_found("volume", name, "`farside volume list` shows them"))?,
    ))
}

async fn volume(State(daemon): Here, Path(name): Path<String>) -> Answer<VolumeStatus> {
    one_volume(&daemon, &name).await
}

/// A client that goes away takes its handler with it. A change goes on to its end all the same: half of one would leave a volume
/// that is served and not configured, or the reverse.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::spawn(change).await.map_err(|e| ApiError::internal(e.to_string()))?
}

async fn add(State(daemon): Here, add: Body<VolumeAdd>) -> Answer<VolumeStatus> {
    let Told(add) = add?;
    let (at_work, wanted) = (daemon.clone(), add.clone());
    to_its_end(async move { at_work.add_volume(&wanted).await }).await?;
    one_volume(&daemon, &add.name).await
}

async fn remove(State(daemon): Here, Path(name): Path<String>) -> Answer<Done> {
    let (at_work, wanted) = (daemon.clone(), name.clone());
    to_its_end(async move { at_work.remove_volume(&wanted).await }).await?;
    Ok(Json(Done { message: format!("volume {name} is no longer served; its points stay in the store") }))
}

async fn pause(State(daemon): Here, Path(name): Path<String>) -> Answer<VolumeStatus> {
    daemon.pause(&name, true).await?;
    one_volume(&daemon, &name).await
}

async fn resume(State(daemon): Here, Path(name): Path<String>) -> Answer<VolumeStatus> {
    daemon.pause(&name, false).await?;
    one_volume(&daemon, &name).await
}

async fn resync(State(daemon): Here, Path(name): Path<String>, request: Body<ResyncRequest>) -> Answer<VolumeStatus> {
    let Told(request) = request?;
    daemon.resync_as_said(&name, request.accept).await?;
    one_volume(&daemon, &name).await
}

async fn verify(State(daemon): Here, Path(name): Path<String>) -> Answer<VolumeStatus> {
    daemon.verify(&name).await?;
    one_volume(&daemon, &name).await
}

async fn failbacks(State(daemon): Here) -> Json<Vec<FailbackStatus>> {
    Json(daemon.show_failbacks())
}

async fn failback(State(daemon): Here, request: Body<FailbackRequest>) -> Answer<FailbackStatus> {
    let Told(request) = request?;
    Ok(Json(to_its_end(async move { daemon.failback(&request).await }).await?))
}

async fn branches(State(daemon): Here) -> Json<Vec<BranchStatus>> {
    Json(daemon.branches())
}

async fn remove_branch(State(daemon): Here, Path(id): Path<String>) -> Answer<BranchStatus> {
    Ok(Json(to_its_end(async move { daemon.remove_branch(&id).await }).await?))
}

async fn cutover(State(daemon): Here, request: Body<CutoverRequest>) -> Answer<FailbackStatus> {
    let Told(request) = request?;
    Ok(Json(to_its_end(async move { daemon.cutover(&request).await }).await?))
}

async fn roll_back(State(daemon): Here, request: Body<RollbackRequest>) -> Answer<RollbackStatus> {
    let Told(request) = request?;
    Ok(Json(to_its_end(async move { daemon.roll_back(&request).await }).await?))
}

async fn points(State(daemon): Here, query: Result<Query<PointsQuery>, QueryRejection>) -> Answer<Vec<Point>> {
    let Query(query) = query?;
    let mut page = PageMaker::newest(query.limit);
    gather(&daemon, query.of.as_deref(), &PointFilter::default(), &mut page).await?;
    Ok(Json(page.points()))
}

async fn point_pages(State(daemon): Here, query: Result<Query<PagesQuery>, QueryRejection>) -> Answer<PointPage> {
    let Query(query) = query?;
    let mut page = PageMaker::for_query(&query).map_err(|e| bad_list(&e))?;
    if [&query.reason, &query.label].into_iter().flatten().any(|text| text.len() > PIN_REASON_BYTES_MAX) {
        return Err(bad_list(&format!("no reason of a pin, and no label, is longer than {PIN_REASON_BYTES_MAX} bytes")).into());
    }
    let filter = PointFilter {
        volume: None,
        since_wall_ms: query.since.map(|at| at.as_millisecond()),
        until_wall_ms: query.until.map(|at| at.as_millisecond()),
        pinned: query.pinned,
        reason: query.reason,
        verified: query.verified,
        consistent: query.consistent,
        label: query.label,
    };
    gather(&daemon, query.of.as_deref(), &filter, &mut page).await?;
    Ok(Json(page.page().map_err(|e| bad_list(&e))?))
}

fn bad_list(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, error.to_string(), "see `farside point list --help`")
}

/// Fills a page with the points of what an address names.
async fn gather(daemon: &Daemon, of: Option<&str>, filter: &PointFilter, page: &mut PageMaker) -> Result<(), ApiError> {
    let (places, mut any) = (places(daemon, of)?, false);
    for (group, volume) in places {
        let (filter, start) =
            (PointFilter { volume, ..filter.clone() }, page.below(daemon.source_of(&group).as_str(), group.as_str()));
        let (mut below, mut found, mut more, mut total) = (start.map(Slot), Vec::new(), true, None);
        while more && found.len() < page.limit() {
            let limit = (page.limit() - found.len()).min(POINTS_PAGE_MAX) as u32;
            let answer = daemon.points(&group, PointQueryKind::List { filter: filter.clone(), below, limit }).await?.page;
            more = answer.more && !answer.points.is_empty();
            below = answer.points.last().map(|p| p.slot);
            total = total.or(answer.total);
            found.extend(answer.points.iter().map(|p| point_of(&daemon.source_of(&group), &group, p)));
        }
        any |= start.is_some() || !found.is_empty();
        page.add(found, more, total);
    }
    if any { Ok(()) } else { refuse_unknown(daemon, of) }
}

/// The groups in which an address may name something, and what volume it would be: `None`, the whole group.
fn places(daemon: &Daemon, of: Option<&str>) -> Result<Vec<(Name, Option<VolumeId>)>, ApiError> {
    let address: Option<Address> = of.map(str::parse).transpose().map_err(|e: AddressError| bad_list(&e))?;
    let place = |group: Name| {
        let volume = match &address {
            None => None,
            Some(address) => match address.within(daemon.source_of(&group).as_str(), group.as_str())? {
                None => None,
                Some(volume) => Some(farside_ledger::volume_id(&daemon.source_of(&group), &group, &volume.parse().ok()?)),
            },
        };
        Some((group, volume))
    };
    Ok(daemon.group_names().into_iter().filter_map(place).collect())
}

/// Where no point was found: perhaps there is nothing of that name.
fn refuse_unknown(daemon: &Daemon, of: Option<&str>) -> Result<(), ApiError> {
    let address: Option<Address> = of.map(str::parse).transpose().map_err(|e: AddressError| bad_list(&e))?;
    match address.filter(|address| !daemon.knows(address.name())) {
        None => Ok(()),
        Some(address) => Err(ApiError::not_found(
            "volume or group",
            address.name(),
            "`farside volume list` shows the volumes, `farside status` the groups",
        )),
    }
}

async fn point(
    State(daemon): Here,
    Path(point): Path<String>,
    query: Result<Query<PointsQuery>, QueryRejection>,
) -> Answer<Point> {
    let Query(PointsQuery { of, .. }) = query?;
    let wanted: PointRef = point.parse().map_err(|e: farside_control::PointRefError| {
        ApiError::new(ErrorCode::BadRequest, e.to_string(), "see `farside point show --help`")
    })?;
    let search = wanted.search(jiff::Timestamp::now());
    let until_wall_ms = search.until.map(|at| at.as_millisecond());
    let (mut found, mut newest) = (Vec::new(), Vec::new());
    for (group, volume) in places(&daemon, of.as_deref())? {
        let filter = PointFilter { volume, until_wall_ms, consistent: search.consistent, ..PointFilter::default() };
        let kind = PointQueryKind::List { filter, below: search.below.map(Slot), limit: 1 };
        let answer = daemon.points(&group, kind).await?;
        let points = answer.page.points.iter().map(|p| point_of(&daemon.source_of(&group), &group, p));
        found.extend(points.filter(|point| search.is_meant(point.id)));
        if found.is_empty() {
            let filter = PointFilter { volume, ..PointFilter::default() };
            let answer = daemon.points(&group, PointQueryKind::List { filter, below: None, limit: 1 }).await?;
            let total = answer.page.total.unwrap_or(1);
            newest.extend(answer.page.points.iter().map(|p| (point_of(&daemon.source_of(&group), &group, p), total)));
        }
    }
    if let Some(point) = farside_control::select_point(&found, wanted, jiff::Timestamp::now()) {
        return Ok(Json(point.clone()));
    }
    match newest.iter().max_by_key(|(point, _)| point.cut_wall) {
        Some((point, total)) => Err(farside_control::no_such_point_of(point, *total, wanted, of.as_deref()).into()),
        None => {
            refuse_unknown(&daemon, of.as_deref())?;
            Err(farside_control::no_such_point(&[], wanted, of.as_deref()).into())
        }
    }
}

fn point_of(source: &Name, group: &Name, p: &PointInfo) -> Point {
    let (consistency, title, hooks) = said_of(p.label.as_deref());
    Point {
        id: PointId::new(p.slot.0, &p.digest.0),
        source: source.to_string(),
        group: group.to_string(),
        cut_wall: jiff::Timestamp::from_millisecond(p.epoch.wall_ms).unwrap_or_default(),
        cut_mono_before_ns: p.epoch.mono_before_ns,
        cut_mono_after_ns: p.epoch.mono_after_ns,
        boot: p.epoch.boot.to_string(),
        ledger_time_ms: p.ledger_time_ms,
        members: p
            .members
            .iter()
            .map(|m| PointMember {
                volume: m.name.to_string(),
                volume_id: m.layer.volume.to_string(),
                bytes: m.volume_bytes,
                term: m.layer.term.0,
                seq: m.layer.seq.0,
                layer_bytes: None,
            })
            .collect(),
        pinned: p.pinned,
        pins: Vec::new(),
        degraded: p.members.iter().any(|m| m.unreadable_regions > 0),
        verified: Vec::new(),
        consistency,
        cut: p
            .label
            .as_deref()
            .and_then(|label| label.consistency.cohort_cut())
            .map(|cut| PointCut::new(&cut.cut, cut.groups, cut.wall_ms)),
        title,
        hooks,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use farside_control::client::Daemon as Which;
    use farside_control::openapi;

    #[test]
    fn what_is_served_is_described_and_the_other_way_round() {
        let of_source = openapi::operations().into_iter().filter(|op| op.daemon == Which::Source);
        let described: BTreeSet<_> = of_source.map(|op| (op.method, op.path, op.takes_query())).collect();
        let served = super::routes();
        let served = served.served().iter().map(|one| (one.method, one.path, one.takes_query));
        assert_eq!(served.collect::<BTreeSet<_>>(), described);
    }
}
