//! The API described for others: an OpenAPI document for each daemon, made of the very types that are sent.
//!
//! [`operations`] lists every operation once. Tests hold it against the routers (each daemon's), the paths in
//! [`crate::routes`], the answers of running daemons, and the committed documents `docs/api/*.json`.

use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, PathsBuilder, Ref, RefOr, Required,
    ResponseBuilder, Schema,
};
use utoipa::{IntoParams as _, ToSchema};

use crate::client::Daemon;
use crate::cohort::{CohortCut, CohortStatus};
use crate::failback::{BranchStatus, CutoverRequest, FailbackRequest, FailbackStatus};
use crate::failover::{FailoverRequest, FailoverStatus};
use crate::follower::{FollowerAdd, FollowerStatus};
use crate::receiver::{ReceiverStatus, Token, TokenRequest};
use crate::rollback::{RollbackRequest, RollbackStatus};
use crate::routes::{self, PagesQuery, PointsQuery, UnpinQuery};
use crate::source::{
    Done, GroupSettings, GroupStatus, Limits, PairRequest, Paired, PointTaken, PointWanted, ResyncRequest, SourceStatus,
    VolumeAdd, VolumeStatus,
};
use crate::{ApiError, HoldRequest, PinRequest, Point, PointPage, Reloaded, Verification};

/// One method of one path of one daemon.
pub struct Operation {
    /// Who serves it.
    pub daemon: Daemon,
    /// `GET`, `POST`…
    pub method: &'static str,
    /// One of [`crate::routes`].
    pub path: &'static str,
    summary: &'static str,
    query: Takes,
    request: Option<Described>,
    answer: Option<Described>,
}

/// The query string of an operation.
enum Takes {
    Nothing,
    /// [`PointsQuery`].
    Points,
    /// [`PagesQuery`].
    Pages,
    /// [`UnpinQuery`].
    Unpin,
}

/// A type by its name, with all that it is made of.
struct Described {
    name: String,
    is_list: bool,
    schemas: Vec<(String, RefOr<Schema>)>,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} of {}", self.method, self.path, self.daemon.program())
    }
}

impl Described {
    fn of<T: ToSchema>() -> Self {
        let mut schemas = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut schemas);
        Self { name: T::name().into_owned(), is_list: false, schemas }
    }

    fn list<T: ToSchema>() -> Self {
        Self { is_list: true, ..Self::of::<T>() }
    }

    fn schema(&self) -> RefOr<Schema> {
        let one = Ref::from_schema_name(&self.name);
        if self.is_list { utoipa::openapi::schema::ArrayBuilder::new().items(one).into() } else { one.into() }
    }
}

impl Operation {
    fn new(daemon: Daemon, method: &'static str, path: &'static str, summary: &'static str, answer: Described) -> Self {
        Self { daemon, method, path, summary, query: Takes::Nothing, request: None, answer: Some(answer) }
    }

    fn taking<T: ToSchema>(self) -> Self {
        Self { request: Some(Described::of::<T>()), ..self }
    }

    /// Whether it has a query string; where it has none, none is taken.
    pub fn takes_query(&self) -> bool {
        !matches!(self.query, Takes::Nothing)
    }

    fn with_query(self) -> Self {
        Self { query: Takes::Points, ..self }
    }
}

/// Everything that both daemons serve.
pub fn operations() -> Vec<Operation> {
    use Daemon::{Receiver, Source};
    let op = Operation::new;
    let volume = Described::of::<VolumeStatus>;
    let follower = Described::of::<FollowerStatus>;
    let mut all = vec![
        op(Source, "GET", routes::STATUS, "Groups, volumes, connection, and what is wrong", Described::of::<SourceStatus>()),
        op(Source, "POST", routes::PAIR, "Use a pairing token", Described::of::<Paired>()).taking::<PairRequest>(),
        op(Source, "DELETE", routes::PAIR, "Forget the receiver and end the connections to it", Described::of::<Done>()),
        op(Source, "GET", routes::FAILBACKS, "Cutovers and failbacks that are not over", Described::list::<FailbackStatus>()),
        op(
            Source,
            "POST",
            routes::FAILBACKS,
            "Bring a group's disks to what its stand-in published",
            Described::of::<FailbackStatus>(),
        )
        .taking::<FailbackRequest>(),
        op(
            Source,
            "POST",
            routes::CUTOVERS,
            "Take a group out of service here, with all of it published",
            Described::of::<FailbackStatus>(),
        )
        .taking::<CutoverRequest>(),
        op(
            Source,
            "POST",
            routes::ROLLBACKS,
            "Pin what was published since a group was failed over, and take its history back",
            Described::of::<RollbackStatus>(),
        )
        .taking::<RollbackRequest>(),
        op(
            Source,
            "GET",
            routes::BRANCHES,
            "What was kept of disks before it was overwritten",
            Described::list::<BranchStatus>(),
        ),
        op(Source, "DELETE", routes::BRANCH, "Remove such a branch", Described::of::<BranchStatus>()),
        op(Source, "PATCH", routes::GROUP, "Change a group's settings", Described::of::<GroupStatus>()).taking::<GroupSettings>(),
        op(Source, "POST", routes::GROUP_TAKE, "Make a point of a group now", Described::of::<PointTaken>())
            .taking::<PointWanted>(),
        op(Source, "GET", routes::LIMITS, "The limits that can change while the daemon runs", Described::of::<Limits>()),
        op(Source, "PUT", routes::LIMITS, "Change them", Described::of::<Limits>()).taking::<Limits>(),
        op(Source, "GET", routes::VOLUMES, "All volumes", Described::list::<VolumeStatus>()),
        op(Source, "POST", routes::VOLUMES, "Serve and protect a volume", volume()).taking::<VolumeAdd>(),
        op(Source, "GET", routes::VOLUME, "One volume", volume()),
        op(Source, "DELETE", routes::VOLUME, "Stop serving a volume and forget it; its points stay", Described::of::<Done>()),
        op(Source, "POST", routes::VOLUME_PAUSE, "Stop replicating a volume; it is served and tracked as before", volume()),
        op(Source, "POST", routes::VOLUME_RESUME, "Go on replicating a paused volume", volume()),
        op(Source, "POST", routes::VOLUME_RESYNC, "Compare a whole volume and send what differs", volume())
            .taking::<ResyncRequest>(),
        op(Source, "POST", routes::VOLUME_VERIFY, "Compare a whole volume with what is published", volume()),
        op(Receiver, "GET", routes::STATUS, "Store, sources, groups, and what is wrong", Described::of::<ReceiverStatus>()),
        op(Receiver, "DELETE", routes::SOURCE, "Forget a source's certificate and end its connections", Described::of::<Done>()),
        op(Receiver, "POST", routes::TOKENS, "Make a pairing token", Described::of::<Token>()).taking::<TokenRequest>(),
        op(Receiver, "POST", routes::POINT_PIN, "Never prune a point", Described::of::<Point>())
            .taking::<PinRequest>()
            .with_query(),
        Operation {
            query: Takes::Unpin,
            ..op(Receiver, "DELETE", routes::POINT_PIN, "Withdraw the pins of a point", Described::of::<Point>())
        },
        op(Receiver, "POST", routes::POINT_HOLD, "Put a point under legal hold", Described::of::<Point>())
            .taking::<HoldRequest>()
            .with_query(),
        op(Receiver, "POST", routes::POINT_RELEASE, "End the legal hold of one case", Described::of::<Point>())
            .taking::<HoldRequest>()
            .with_query(),
        op(Receiver, "POST", routes::POINT_VERIFY, "Begin to read a whole point and check it", Described::of::<Verification>())
            .with_query(),
        op(Receiver, "GET", routes::VERIFICATION, "The newest verification of a point", Described::of::<Verification>()),
        op(Receiver, "DELETE", routes::VERIFICATION, "Stop it", Described::of::<Verification>()),
        op(Receiver, "GET", routes::FAILOVERS, "Failovers that are not over", Described::list::<FailoverStatus>()),
        op(Receiver, "POST", routes::FAILOVERS, "Fence a group's source, and promote a point", Described::of::<FailoverStatus>())
            .taking::<FailoverRequest>(),
        op(Receiver, "GET", routes::COHORTS, "Groups of several hosts that are cut as one", Described::list::<CohortStatus>()),
        op(
            Receiver,
            "GET",
            routes::COHORT_CUTS,
            "The newest cuts of a cohort of which every group has its point",
            Described::list::<CohortCut>(),
        )
        .with_query(),
        op(Receiver, "POST", routes::COHORT_CUTS, "Cut a cohort now", Described::of::<Done>()),
        op(
            Receiver,
            "DELETE",
            routes::COHORT,
            "Keep the points of a cohort that is in the configuration no more as all others",
            Described::of::<Done>(),
        ),
        op(Receiver, "GET", routes::FOLLOWERS, "All followers", Described::list::<FollowerStatus>()),
        op(Receiver, "POST", routes::FOLLOWERS, "Keep a file or device equal to a point", follower()).taking::<FollowerAdd>(),
        op(Receiver, "GET", routes::FOLLOWER, "One follower", follower()),
        op(Receiver, "DELETE", routes::FOLLOWER, "End a follower; its target stays as it is", Described::of::<Done>()),
        op(Receiver, "POST", routes::FOLLOWER_PAUSE, "Close a follower's target and leave it alone", follower()),
        op(Receiver, "POST", routes::FOLLOWER_RESUME, "Go on with a paused follower", follower()),
        op(Receiver, "POST", routes::FOLLOWER_VERIFY, "Compare a follower's target with the point that it holds", follower()),
        op(
            Receiver,
            "POST",
            routes::FOLLOWER_HEAL,
            "Compare a follower's target with its point, and overwrite what differs",
            follower(),
        ),
    ];
    for daemon in [Source, Receiver] {
        all.push(op(daemon, "GET", routes::POINTS, "Recovery points, newest first", Described::list::<Point>()).with_query());
        let pages =
            op(daemon, "GET", routes::POINT_PAGES, "A page of the recovery points, newest first", Described::of::<PointPage>());
        all.push(Operation { query: Takes::Pages, ..pages });
        all.push(op(daemon, "GET", routes::POINT, "One recovery point", Described::of::<Point>()).with_query());
        all.push(op(daemon, "POST", routes::RELOAD, "Read the configuration again", Described::of::<Reloaded>()));
        let metrics = op(daemon, "GET", routes::METRICS, "Metrics as OpenMetrics text", Described::of::<Done>());
        all.push(Operation { answer: None, ..metrics });
    }
    all
}

/// The document of one daemon.
pub fn document(daemon: Daemon) -> OpenApi {
    let mut components = Components::new();
    let mut add = |described: &Described| components.schemas.extend(described.schemas.iter().cloned());
    add(&Described::of::<ApiError>());
    let mut paths = PathsBuilder::new();
    for operation in operations().iter().filter(|operation| operation.daemon == daemon) {
        operation.request.iter().chain(&operation.answer).for_each(&mut add);
        let method = match operation.method {
            "GET" => HttpMethod::Get,
            "POST" => HttpMethod::Post,
            "PUT" => HttpMethod::Put,
            "PATCH" => HttpMethod::Patch,
            "DELETE" => HttpMethod::Delete,
            other => unreachable!("no operation has the method {other}"),
        };
        paths = paths.path(operation.path, PathItem::new(method, describe(operation)));
    }
    let title = format!("{} on its Unix socket", daemon.program());
    let words = "HTTP over the daemon's Unix socket, which belongs to root or to the group in its configuration. Fields may be \
                 added; a client ignores those that it does not know. A daemon does not: a request with a field, or with something in its query string, that \
                 it does not know is refused, and nothing is done. Units are in the names.";
    let info = InfoBuilder::new().title(title).version("1").description(Some(words)).build();
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

fn describe(operation: &Operation) -> utoipa::openapi::path::Operation {
    let mut built = OperationBuilder::new().summary(Some(operation.summary));
    for name in operation.path.split(['{', '}']).skip(1).step_by(2) {
        let text = ObjectBuilder::new().schema_type(Type::String);
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
        built = built.parameter(parameter.schema(Some(text)));
    }
    let parameters = match operation.query {
        Takes::Nothing => Vec::new(),
        Takes::Points => PointsQuery::into_params(|| Some(ParameterIn::Query)),
        Takes::Pages => PagesQuery::into_params(|| Some(ParameterIn::Query)),
        Takes::Unpin => UnpinQuery::into_params(|| Some(ParameterIn::Query)),
    };
    for parameter in parameters {
        built = built.parameter(parameter);
    }
    if let Some(request) = &operation.request {
        let content = ContentBuilder::new().schema(Some(request.schema())).build();
        let body = RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True));
        built = built.request_body(Some(body.build()));
    }
    let (kind, schema) = match &operation.answer {
        Some(answer) => ("application/json", answer.schema()),
        None => ("application/openmetrics-text", ObjectBuilder::new().schema_type(Type::String).into()),
    };
    let done = ResponseBuilder::new().description("Done").content(kind, ContentBuilder::new().schema(Some(schema)).build());
    let error = ContentBuilder::new().schema(Some(Ref::from_schema_name(ApiError::name()))).build();
    let failed = ResponseBuilder::new().description("It was not done").content("application/json", error);
    built.response("200", done).response("default", failed).build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_is_described_and_every_description_has_a_path() {
        let source = include_str!("routes.rs");
        let consts = source.lines().filter(|line| line.starts_with("pub const "));
        let paths: BTreeSet<&str> = consts.filter_map(|line| line.split('"').nth(1)).collect();
        let described: BTreeSet<&str> = operations().iter().map(|operation| operation.path).collect();
        assert_eq!(described, paths);
    }

    #[test]
    fn the_committed_documents_are_up_to_date() {
        for daemon in [Daemon::Source, Daemon::Receiver] {
            let text = document(daemon).to_pretty_json().expect("JSON") + "\n";
            let path = format!("{}/../../docs/api/{}.json", env!("CARGO_MANIFEST_DIR"), daemon.program());
            if std::env::var_os("FARSIDE_BLESS").is_some() {
                std::fs::create_dir_all(std::path::Path::new(&path).parent().expect("a folder")).expect("made");
                std::fs::write(&path, &text).expect("written");
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == text,
                "{path} is not what is served: run this test with FARSIDE_BLESS=1 and read the difference"
            );
        }
    }

    #[test]
    fn nothing_refers_to_what_is_not_there() {
        for daemon in [Daemon::Source, Daemon::Receiver] {
            let json = serde_json::to_value(document(daemon)).expect("JSON");
            let text = json.to_string();
            for name in text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next().expect("an end")) {
                assert!(json["components"]["schemas"][name].is_object(), "{name} is referred to and not described");
            }
        }
    }
}
