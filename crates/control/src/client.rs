//! A client of either daemon over its Unix socket.
//!
//! One request, one connection: a daemon that was restarted is simply reached again. Every wait ends at a time-out, and
//! whatever goes wrong becomes a sentence with the next step in it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

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
use crate::{
    ANSWER_BYTES_MAX, ApiError, HoldRequest, PinRequest, Point, PointPage, RECEIVER_SOCKET, Reloaded, SOURCE_SOCKET, Verification,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Which daemon a [`Client`] talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// `farsided`, on the protected host.
    Source,
    /// `farside-receiver`, on the gateway.
    Receiver,
}

impl Daemon {
    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Source => "farsided",
            Self::Receiver => "farside-receiver",
        }
    }

    /// Where it listens by default.
    pub fn socket(self) -> &'static Path {
        Path::new(match self {
            Self::Source => SOURCE_SOCKET,
            Self::Receiver => RECEIVER_SOCKET,
        })
    }
}

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("{program} is not running: nobody listens on {socket}")]
    NotRunning {
        /// The daemon.
        program: &'static str,
        /// Its socket.
        socket: PathBuf,
    },
    /// The socket is not for this user.
    #[error("this user may not talk to {program}: {socket} belongs to root or to the group in its configuration")]
    NotAllowed {
        /// The daemon.
        program: &'static str,
        /// Its socket.
        socket: PathBuf,
    },
    /// No answer in time.
    #[error("{program} did not answer within {}", Seconds(.after))]
    TimedOut {
        /// The daemon.
        program: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke: the daemon stopped while it was asked.
    #[error("{program} hung up while it was asked")]
    HungUp {
        /// The daemon.
        program: &'static str,
        /// How.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon understood, and said no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// What came back is not this API.
    #[error("{program} answered with something this version does not understand (HTTP {status})")]
    NotUnderstood {
        /// The daemon.
        program: &'static str,
        /// The HTTP status.
        status: u16,
        /// What was wrong with the body.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

struct Seconds<'a>(&'a Duration);

impl std::fmt::Display for Seconds<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}

impl ClientError {
    /// The next step for a person; empty if there is none.
    pub fn what_to_do(&self) -> String {
        match self {
            Self::NotRunning { program, .. } => format!("start it: systemctl start {program} (and see: journalctl -u {program})"),
            Self::NotAllowed { .. } => "run this as root, or join that group".to_owned(),
            Self::TimedOut { program, .. } | Self::HungUp { program, .. } => format!("look at its log: journalctl -u {program}"),
            Self::Api(error) => error.what_to_do.clone(),
            Self::NotUnderstood { program, .. } => format!("install the same version of farside and {program}"),
        }
    }

    /// Whether the daemon could not be reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::NotAllowed { .. } | Self::TimedOut { .. } | Self::HungUp { .. })
    }
}

/// A daemon's socket and how long to wait for it.
#[derive(Clone, Debug)]
pub struct Client {
    daemon: Daemon,
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// A client of `daemon` on `socket`.
    pub fn new(daemon: Daemon, socket: impl Into<PathBuf>) -> Self {
        Self { daemon, socket: socket.into(), timeout: Duration::from_secs(30) }
    }

    /// A client of whichever daemon listens on `socket`: their statuses tell them apart.
    ///
    /// # Errors
    /// [`ClientError`], naming the daemon that the socket's name speaks of: `farside-receiver` for a `receiver` in it, else
    /// `farsided`.
    pub async fn identify(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let socket = socket.into();
        let of_receiver = socket.file_name().is_some_and(|name| name.to_string_lossy().contains("receiver"));
        let client = Self::new(if of_receiver { Daemon::Receiver } else { Daemon::Source }, socket);
        let status: serde_json::Value = client.get(routes::STATUS).await?;
        let daemon = if status.get("source").is_some() { Daemon::Source } else { Daemon::Receiver };
        Ok(Self { daemon, ..client })
    }

    /// The same with another limit for one request (30 s unless said).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Which daemon.
    pub fn daemon(&self) -> Daemon {
        self.daemon
    }

    /// Where.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The status of a source.
    ///
    /// # Errors
    /// [`ClientError`], like every method here.
    pub async fn source_status(&self) -> Result<SourceStatus, ClientError> {
        self.get(routes::STATUS).await
    }

    /// The status of a receiver.
    pub async fn receiver_status(&self) -> Result<ReceiverStatus, ClientError> {
        self.get(routes::STATUS).await
    }

    /// Uses a token.
    pub async fn pair(&self, token: &str) -> Result<Paired, ClientError> {
        self.send(Method::POST, routes::PAIR, &PairRequest { token: token.trim().to_owned() }).await
    }

    /// Has a source forget its receiver.
    pub async fn unpair(&self) -> Result<Done, ClientError> {
        self.call(Method::DELETE, routes::PAIR, Bytes::new()).await
    }

    /// Changes a group's settings.
    pub async fn group_set(&self, group: &str, settings: &GroupSettings) -> Result<GroupStatus, ClientError> {
        self.send(Method::PATCH, &routes::group(group), settings).await
    }

    /// Makes a point of a group now; the answer comes when it is published.
    pub async fn point_take(&self, group: &str, wanted: &PointWanted) -> Result<PointTaken, ClientError> {
        self.send(Method::POST, &routes::group_take(group), wanted).await
    }

    /// All volumes.
    pub async fn volumes(&self) -> Result<Vec<VolumeStatus>, ClientError> {
        self.get(routes::VOLUMES).await
    }

    /// One volume.
    pub async fn volume(&self, volume: &str) -> Result<VolumeStatus, ClientError> {
        self.get(&routes::volume(volume)).await
    }

    /// Adds a volume.
    pub async fn volume_add(&self, add: &VolumeAdd) -> Result<VolumeStatus, ClientError> {
        self.send(Method::POST, routes::VOLUMES, add).await
    }

    /// Stops serving a volume and forgets it.
    pub async fn volume_remove(&self, volume: &str) -> Result<Done, ClientError> {
        self.call(Method::DELETE, &routes::volume(volume), Bytes::new()).await
    }

    /// Stops replicating a volume.
    pub async fn volume_pause(&self, volume: &str) -> Result<VolumeStatus, ClientError> {
        self.call(Method::POST, &routes::volume_pause(volume), Bytes::new()).await
    }

    /// Goes on replicating a volume.
    pub async fn volume_resume(&self, volume: &str) -> Result<VolumeStatus, ClientError> {
        self.call(Method::POST, &routes::volume_resume(volume), Bytes::new()).await
    }

    /// Compares a whole volume, accepting what the person says.
    pub async fn volume_resync(&self, volume: &str, request: &ResyncRequest) -> Result<VolumeStatus, ClientError> {
        self.send(Method::POST, &routes::volume_resync(volume), request).await
    }

    /// Compares a whole volume with what is published; the answer shows how far that is.
    pub async fn volume_verify(&self, volume: &str) -> Result<VolumeStatus, ClientError> {
        self.call(Method::POST, &routes::volume_verify(volume), Bytes::new()).await
    }

    /// What the source keeps to.
    pub async fn limits(&self) -> Result<Limits, ClientError> {
        self.get(routes::LIMITS).await
    }

    /// Sets all of it.
    pub async fn limits_set(&self, limits: &Limits) -> Result<Limits, ClientError> {
        self.send(Method::PUT, routes::LIMITS, limits).await
    }

    /// Points, newest first.
    pub async fn points(&self, query: &PointsQuery) -> Result<Vec<Point>, ClientError> {
        self.get(&routes::points(query)).await
    }

    /// One page of points, newest first.
    pub async fn point_page(&self, query: &PagesQuery) -> Result<PointPage, ClientError> {
        self.get(&routes::point_pages(query)).await
    }

    /// One point; `point` is a [`PointRef`](crate::PointRef).
    pub async fn point(&self, point: &str, query: &PointsQuery) -> Result<Point, ClientError> {
        self.get(&routes::point(point, query)).await
    }

    /// Pins a point; the point as it is then.
    pub async fn point_pin(&self, point: &str, query: &PointsQuery, request: &PinRequest) -> Result<Point, ClientError> {
        self.send(Method::POST, &routes::point_pin(point, query), request).await
    }

    /// Puts a point under legal hold; the point as it is then.
    pub async fn point_hold(&self, point: &str, query: &PointsQuery, request: &HoldRequest) -> Result<Point, ClientError> {
        self.send(Method::POST, &routes::point_hold(point, query), request).await
    }

    /// Ends the legal hold of one case; the point as it is then.
    pub async fn point_release(&self, point: &str, query: &PointsQuery, request: &HoldRequest) -> Result<Point, ClientError> {
        self.send(Method::POST, &routes::point_release(point, query), request).await
    }

    /// Withdraws what people pinned a point for, or all its pins, but for legal holds; the point as it is then.
    pub async fn point_unpin(&self, point: &str, query: &UnpinQuery) -> Result<Point, ClientError> {
        self.call(Method::DELETE, &routes::point_unpin(point, query), Bytes::new()).await
    }

    /// Begins to verify a point.
    pub async fn point_verify(&self, point: &str, query: &PointsQuery) -> Result<Verification, ClientError> {
        self.call(Method::POST, &routes::point_verify(point, query), Bytes::new()).await
    }

    /// How far that is.
    pub async fn verification(&self) -> Result<Verification, ClientError> {
        self.get(routes::VERIFICATION).await
    }

    /// Stops it.
    pub async fn verification_stop(&self) -> Result<Verification, ClientError> {
        self.call(Method::DELETE, routes::VERIFICATION, Bytes::new()).await
    }

    /// Failbacks that are not over.
    pub async fn failbacks(&self) -> Result<Vec<FailbackStatus>, ClientError> {
        self.get(routes::FAILBACKS).await
    }

    /// Begins a failback, says what one would do, or tells one what to do.
    pub async fn failback(&self, request: &FailbackRequest) -> Result<FailbackStatus, ClientError> {
        self.send(Method::POST, routes::FAILBACKS, request).await
    }

    /// What was kept of disks before it was overwritten.
    pub async fn branches(&self) -> Result<Vec<BranchStatus>, ClientError> {
        self.get(routes::BRANCHES).await
    }

    /// Removes a branch.
    pub async fn branch_remove(&self, id: &str) -> Result<BranchStatus, ClientError> {
        self.call(Method::DELETE, &routes::branch(id), Bytes::new()).await
    }

    /// Begins a cutover, says what one would do, or gives one up.
    pub async fn cutover(&self, request: &CutoverRequest) -> Result<FailbackStatus, ClientError> {
        self.send(Method::POST, routes::CUTOVERS, request).await
    }

    /// Has a group take its history back, or says what that would discard.
    pub async fn rollback(&self, request: &RollbackRequest) -> Result<RollbackStatus, ClientError> {
        self.send(Method::POST, routes::ROLLBACKS, request).await
    }

    /// Failovers that are not over.
    pub async fn failovers(&self) -> Result<Vec<FailoverStatus>, ClientError> {
        self.get(routes::FAILOVERS).await
    }

    /// All cohorts.
    pub async fn cohorts(&self) -> Result<Vec<CohortStatus>, ClientError> {
        self.get(routes::COHORTS).await
    }

    /// The newest cuts of a cohort of which every group has its point.
    pub async fn cohort_cuts(&self, name: &str, query: &PointsQuery) -> Result<Vec<CohortCut>, ClientError> {
        self.get(&routes::cohort_cuts(name, query)).await
    }

    /// Cuts a cohort now.
    pub async fn cohort_take(&self, name: &str) -> Result<Done, ClientError> {
        self.call(Method::POST, &routes::cohort(name), Bytes::new()).await
    }

    /// Gives the points of a cohort that is in the configuration no more to the policies of their groups.
    pub async fn cohort_forget(&self, name: &str) -> Result<Done, ClientError> {
        self.call(Method::DELETE, &routes::one_cohort(name), Bytes::new()).await
    }

    /// Begins a failover, or says what one would do.
    pub async fn failover(&self, request: &FailoverRequest) -> Result<FailoverStatus, ClientError> {
        self.send(Method::POST, routes::FAILOVERS, request).await
    }

    /// All followers.
    pub async fn followers(&self) -> Result<Vec<FollowerStatus>, ClientError> {
        self.get(routes::FOLLOWERS).await
    }

    /// One follower.
    pub async fn follower(&self, name: &str) -> Result<FollowerStatus, ClientError> {
        self.get(&routes::follower(routes::FOLLOWER, name)).await
    }

    /// Begins a follower.
    pub async fn follower_add(&self, add: &FollowerAdd) -> Result<FollowerStatus, ClientError> {
        self.send(Method::POST, routes::FOLLOWERS, add).await
    }

    /// Ends a follower.
    pub async fn follower_remove(&self, name: &str) -> Result<Done, ClientError> {
        self.call(Method::DELETE, &routes::follower(routes::FOLLOWER, name), Bytes::new()).await
    }

    /// Tells a follower what to do: one of the `POST` paths below [`routes::FOLLOWER`].
    pub async fn follower_tell(&self, path: &str, name: &str) -> Result<FollowerStatus, ClientError> {
        self.call(Method::POST, &routes::follower(path, name), Bytes::new()).await
    }

    /// A new pairing token.
    pub async fn token_create(&self, request: &TokenRequest) -> Result<Token, ClientError> {
        self.send(Method::POST, routes::TOKENS, request).await
    }

    /// Sends a source away from a receiver.
    pub async fn source_unpair(&self, source: &str) -> Result<Done, ClientError> {
        self.call(Method::DELETE, &routes::source(source), Bytes::new()).await
    }

    /// Reads the daemon's configuration again.
    pub async fn reload(&self) -> Result<Reloaded, ClientError> {
        self.call(Method::POST, routes::RELOAD, Bytes::new()).await
    }

    /// The metrics, as text.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let program = self.daemon.program();
        let (status, answer) = self.answer(Method::GET, routes::METRICS, Bytes::new()).await?;
        String::from_utf8(answer.to_vec()).map_err(|error| ClientError::NotUnderstood {
            program,
            status: status.as_u16(),
            source: error.into(),
        })
    }

    async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    async fn send<Q: Serialize, A: DeserializeOwned>(&self, method: Method, path: &str, body: &Q) -> Result<A, ClientError> {
        let body = body_of(body);
        self.call(method, path, Bytes::from(body)).await
    }

    async fn call<A: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<A, ClientError> {
        let program = self.daemon.program();
        let (status, answer) = self.answer(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| ClientError::NotUnderstood {
            program,
            status: status.as_u16(),
            source: error.into(),
        })
    }

    /// The body of an answer that is no error.
    async fn answer(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
        let program = self.daemon.program();
        let (status, answer) = tokio::time::timeout(self.timeout, self.exchange(method, path, body))
            .await
            .map_err(|_| ClientError::TimedOut { program, after: self.timeout })??;
        if !status.is_success() {
            return Err(match serde_json::from_slice::<ApiError>(&answer) {
                Ok(error) => ClientError::Api(error),
                // A router of an older version answers without our body where it has no such path.
                Err(_) if status == StatusCode::NOT_FOUND || status == StatusCode::METHOD_NOT_ALLOWED => {
                    ClientError::Api(ApiError::unknown_request(program))
                }
                Err(error) => ClientError::NotUnderstood { program, status: status.as_u16(), source: error.into() },
            });
        }
        Ok((status, answer))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
        let program = self.daemon.program();
        let hung_up = |source| ClientError::HungUp { program, source };
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| hung_up(error.into()))?;
        // Dropping the guard ends the connection's task with the request, also when a time-out drops this future.
        let _guard = AbortOnDrop(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).expect("our own routes are valid URIs");
        let answer = sender.send_request(request).await.map_err(|error| hung_up(error.into()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(hung_up)?;
        Ok((status, body.to_bytes()))
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let program = self.daemon.program();
        let socket = self.socket.clone();
        match tokio::time::timeout(CONNECT_TIMEOUT.min(self.timeout), UnixStream::connect(&self.socket)).await {
            Err(_) => Err(ClientError::TimedOut { program, after: CONNECT_TIMEOUT.min(self.timeout) }),
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                    ClientError::NotRunning { program, socket }
                }
                io::ErrorKind::PermissionDenied => ClientError::NotAllowed { program, socket },
                _ => ClientError::HungUp { program, source: error.into() },
            }),
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A request as it is sent, without what it does not say: a daemon of an older version, which knows nothing of a field that was added, does what is asked
/// unless that field is used. (So a field that is added is an `Option`.)
fn body_of<Q: Serialize>(request: &Q) -> Vec<u8> {
    let mut body = serde_json::to_value(request).expect("our own types are always JSON");
    if let serde_json::Value::Object(fields) = &mut body {
        fields.retain(|_, value| !value.is_null());
    }
    serde_json::to_vec(&body).expect("a value is always JSON")
}

#[cfg(test)]
mod tests;
