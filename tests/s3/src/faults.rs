//! A proxy before a server, which does to each request what the test says. Owned here: the faults, and what clients are told then. What a
//! fault does *not* change is as true as the server behind: a request that reached it was carried out by it.

use std::fmt::{self, Debug};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, IF_NONE_MATCH};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::loopback::{self, Broken, Loopback};
use crate::{Bucket, endpoint};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None.
    Pass,
    /// The server never hears of it.
    Before(Ending),
    /// The server carries it out, and its answer is thrown away.
    After(Ending),
    /// The server hears of it when there is another rule.
    Held,
}

/// What the client sees instead of the server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// 503 `SlowDown`: too many requests. Clients try again.
    SlowDown,
    /// 500 `InternalError`. Clients try again.
    InternalError,
    /// 409 `ConditionalRequestConflict`: somebody else creates the same object at this moment. AWS wants the request once more.
    Conflict,
    /// 412 `PreconditionFailed`: it is already there.
    AlreadyThere,
    /// 403 `InvalidAccessKeyId`: credentials that hold no more.
    Forbidden,
    /// 400 `ExpiredToken`: how AWS says it of temporary credentials.
    ExpiredToken,
    /// The connection is closed.
    Closed,
    /// The connection is reset (RST).
    Reset,
    /// Nothing, for ever.
    Silence,
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object is written.
    Put,
    /// An object, or a part of it, is read.
    Get,
    /// An object is asked for its size and such.
    Head,
    /// The objects of the bucket, or some of them, are listed.
    List,
    /// An object is deleted, or several are (`POST /BUCKET?delete`).
    Delete,
    /// Anything else: what buckets and multipart uploads want.
    Other,
}

/// A request, before anything is done about it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RequestInfo {
    /// What it wants.
    pub kind: Kind,
    /// Which one of its kind this is since the proxy was started, from 1.
    pub nth: u64,
    /// The object's key, or nothing, as it is written in a URL.
    pub key: String,
    /// What follows `?` in the URL, or nothing.
    pub query: String,
    /// Whether it must create the object (`If-None-Match: *`).
    pub creates_only: bool,
    /// Bytes of its body.
    pub bytes: usize,
}

/// How many requests of each kind there were, whatever became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub put: u64,
    pub get: u64,
    pub head: u64,
    pub list: u64,
    pub delete: u64,
    pub other: u64,
}

impl Counts {
    fn of(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Put => &mut self.put,
            Kind::Get => &mut self.get,
            Kind::Head => &mut self.head,
            Kind::List => &mut self.list,
            Kind::Delete => &mut self.delete,
            Kind::Other => &mut self.other,
        }
    }
}

type Rule = Box<dyn FnMut(&RequestInfo) -> Fault + Send>;

struct Plan {
    counts: Counts,
    rule: Rule,
    /// Of the rules.
    changes: watch::Sender<()>,
}

/// A proxy before a server. Without a rule everything passes.
pub struct Faults {
    behind: Bucket,
    plan: Arc<Mutex<Plan>>,
    front: Loopback,
}

impl Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("behind", &self.behind).field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Faults {
    /// Before the server of this bucket.
    pub fn before(bucket: &Bucket) -> Self {
        let plan = Arc::new(Mutex::new(Plan {
            counts: Counts::default(),
            rule: Box::new(|_| Fault::Pass),
            changes: watch::Sender::new(()),
        }));
        let (behind, of_all) = (bucket.address(), plan.clone());
        let front = Loopback::serve(move |client| {
            let connection = Connection { client: Arc::new(Client::of(client)), plan: of_all.clone(), behind };
            service_fn(move |request| connection.clone().answer(request))
        });
        Self { behind: bucket.clone(), plan, front }
    }

    /// From now on, this says what becomes of each request, in the order of their arrival.
    pub fn fault(&self, rule: impl FnMut(&RequestInfo) -> Fault + Send + 'static) {
        let mut plan = locked(&self.plan);
        plan.rule = Box::new(rule);
        plan.changes.send_replace(());
    }

    /// How many requests there were since the start.
    pub fn counts(&self) -> Counts {
        locked(&self.plan).counts
    }

    /// `http://ADDRESS:PORT`
    pub fn endpoint(&self) -> String {
        endpoint(self.front.address())
    }

    /// The bucket, as it is seen through this.
    pub fn bucket(&self) -> Bucket {
        self.behind.through(self.front.address())
    }
}

/// A rule that panicked has failed its test; the counts are as good as before.
fn locked(plan: &Mutex<Plan>) -> std::sync::MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
struct Connection {
    client: Arc<Client>,
    plan: Arc<Mutex<Plan>>,
    behind: SocketAddr,
}

impl Connection {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Broken> {
        let (parts, body) = loopback::whole(request).await?;
        let (fault, mut changes) = self.decide(&parts, body.len());
        match fault {
            Fault::Pass => self.forward(parts, body).await,
            Fault::Held => {
                changes.changed().await?;
                self.forward(parts, body).await
            }
            Fault::Before(ending) => self.client.end(ending).await,
            Fault::After(ending) => {
                self.forward(parts, body).await?;
                self.client.end(ending).await
            }
        }
    }

    /// As a real server, it carries out what it has taken in, whether the client waits for it or not.
    async fn forward(&self, parts: Parts, body: Bytes) -> Result<Response<Full<Bytes>>, Broken> {
        tokio::spawn(loopback::forward(self.behind, parts, body)).await?
    }

    /// And what tells of another rule.
    fn decide(&self, parts: &Parts, bytes: usize) -> (Fault, watch::Receiver<()>) {
        let mut plan = locked(&self.plan);
        let (kind, key) = kind_and_key(parts);
        let count = plan.counts.of(kind);
        *count += 1;
        let (nth, query) = (*count, parts.uri.query().unwrap_or_default().to_owned());
        let creates_only = parts.headers.get(IF_NONE_MATCH).is_some_and(|value| value == "*");
        let fault = (plan.rule)(&RequestInfo { kind, nth, key: key.to_owned(), query, creates_only, bytes });
        (fault, plan.changes.subscribe())
    }
}

fn kind_and_key(request: &Parts) -> (Kind, &str) {
    let key = request.uri.path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
    let query = request.uri.query().unwrap_or_default();
    let asks = |word: &str| query.split('&').any(|pair| pair.split('=').next() == Some(word));
    let is_of_a_part = asks("uploads") || asks("uploadId");
    let kind = match request.method {
        Method::POST if asks("delete") => Kind::Delete,
        Method::GET if key.is_empty() && !asks("uploads") => Kind::List,
        _ if key.is_empty() || is_of_a_part => Kind::Other,
        Method::PUT => Kind::Put,
        Method::GET => Kind::Get,
        Method::HEAD => Kind::Head,
        Method::DELETE => Kind::Delete,
        _ => Kind::Other,
    };
    (kind, key)
}

impl Ending {
    /// The status and S3's own name of an error; `None` for what is no answer.
    fn error(self) -> Option<(StatusCode, &'static str)> {
        Some(match self {
            Self::SlowDown => (StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
            Self::InternalError => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            Self::Conflict => (StatusCode::CONFLICT, "ConditionalRequestConflict"),
            Self::AlreadyThere => (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "InvalidAccessKeyId"),
            Self::ExpiredToken => (StatusCode::BAD_REQUEST, "ExpiredToken"),
            Self::Closed | Self::Reset | Self::Silence => return None,
        })
    }
}

/// The socket of a client, beside the connection that is served on it.
struct Client(Option<OwnedFd>);

impl Client {
    fn of(stream: &TcpStream) -> Self {
        Self(stream.as_fd().try_clone_to_owned().ok())
    }

    async fn end(&self, ending: Ending) -> Result<Response<Full<Bytes>>, Broken> {
        if let Some((status, code)) = ending.error() {
            let body = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
                 <Error><Code>{code}</Code><Message>So a test wants it.</Message><RequestId>1</RequestId></Error>"
            );
            return Ok(Response::builder().status(status).header(CONTENT_TYPE, "application/xml").body(Full::from(body))?);
        }
        match ending {
            Ending::Silence => std::future::pending().await,
            Ending::Reset => {
                // Closing a socket that does not linger resets its connection.
                let socket = self.0.as_ref().ok_or("too many open files")?;
                setsockopt(socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
                Err("reset".into())
            }
            _ => Err("closed".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_its_method_and_place() {
        let cases = [
            ("PUT", "/bucket/a/b", Kind::Put, "a/b"),
            ("GET", "/bucket/a/b", Kind::Get, "a/b"),
            ("HEAD", "/bucket/a", Kind::Head, "a"),
            ("DELETE", "/bucket/a", Kind::Delete, "a"),
            ("POST", "/bucket?delete", Kind::Delete, ""),
            ("GET", "/bucket?list-type=2&prefix=a%2F", Kind::List, ""),
            ("GET", "/bucket/?prefix=uploads", Kind::List, ""),
            ("GET", "/bucket?uploads", Kind::Other, ""),
            ("PUT", "/bucket", Kind::Other, ""),
            ("HEAD", "/bucket", Kind::Other, ""),
            ("POST", "/bucket/a?uploads", Kind::Other, "a"),
            ("PUT", "/bucket/a?partNumber=1&uploadId=x", Kind::Other, "a"),
        ];
        for (method, uri, kind, key) in cases {
            let (parts, ()) = Request::builder().method(method).uri(uri).body(()).expect("a request").into_parts();
            assert_eq!(kind_and_key(&parts), (kind, key), "{method} {uri}");
        }
    }
}
