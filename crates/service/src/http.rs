//! HTTP on a daemon's socket: a router that knows what it serves, and how a request fails.
//!
//! Invariant: whatever is wrong with a request, the answer is an [`ApiError`] as JSON; no body is read beyond its limit. What a request says and its daemon
//! does not know is refused: whoever misspelt `plan` would otherwise have it done.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use farside_control::{ApiError, ErrorCode, REQUEST_BYTES_MAX, routes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A router that can be asked what it serves.
#[derive(Debug)]
pub struct Routes<S> {
    routes: Vec<MethodRouter<S, Infallible>>,
    served: Vec<Served>,
}

/// A method of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Served {
    /// `GET`, `POST`…
    pub method: &'static str,
    /// As the router takes it.
    pub path: &'static str,
    /// Whether its handler reads a query string.
    pub takes_query: bool,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self { routes: Vec::new(), served: Vec::new() }
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// `GET`.
    #[must_use]
    pub fn get<T: 'static>(self, path: &'static str, handler: impl Handler<T, S>) -> Self {
        self.add("GET", path, on(MethodFilter::GET, handler))
    }

    /// `POST`.
    #[must_use]
    pub fn post<T: 'static>(self, path: &'static str, handler: impl Handler<T, S>) -> Self {
        self.add("POST", path, on(MethodFilter::POST, handler))
    }

    /// `PUT`.
    #[must_use]
    pub fn put<T: 'static>(self, path: &'static str, handler: impl Handler<T, S>) -> Self {
        self.add("PUT", path, on(MethodFilter::PUT, handler))
    }

    /// `PATCH`.
    #[must_use]
    pub fn patch<T: 'static>(self, path: &'static str, handler: impl Handler<T, S>) -> Self {
        self.add("PATCH", path, on(MethodFilter::PATCH, handler))
    }

    /// `DELETE`.
    #[must_use]
    pub fn delete<T: 'static>(self, path: &'static str, handler: impl Handler<T, S>) -> Self {
        self.add("DELETE", path, on(MethodFilter::DELETE, handler))
    }

    fn add(mut self, method: &'static str, path: &'static str, handler: MethodRouter<S, Infallible>) -> Self {
        self.served.push(Served { method, path, takes_query: false });
        self.routes.push(handler);
        self
    }

    /// The handler that was added last reads a query string. Any other one's request has none.
    ///
    /// # Panics
    /// Before the first.
    #[must_use]
    pub fn with_query(mut self) -> Self {
        self.served.last_mut().expect("there is a handler").takes_query = true;
        self
    }

    /// Methods and paths.
    pub fn served(&self) -> &[Served] {
        &self.served
    }

    /// Ready to be served.
    pub fn with_state(self, state: S) -> Router {
        // It does not know which daemon serves it.
        let unknown = async || Failed(ApiError::unknown_request("this daemon"));
        let add = |router: Router<S>, (route, served): (MethodRouter<S, Infallible>, Served)| {
            // Who reads metrics may say what he likes: nothing is done by that.
            let takes_any = served.takes_query || served.path == routes::METRICS;
            router.route(served.path, if takes_any { route } else { route.layer(from_fn(refuse_query)) })
        };
        let all = self.routes.into_iter().zip(self.served);
        all.fold(Router::new(), add)
            .fallback(unknown)
            .method_not_allowed_fallback(unknown)
            .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
            .with_state(state)
    }
}

async fn refuse_query(request: Request, next: Next) -> Response {
    match request.uri().query().filter(|query| !query.is_empty()) {
        Some(query) => not_understood(format!("this request takes no query string, and has `{query}`")).into_response(),
        None => next.run(request).await,
    }
}

/// The body of a request, all of which is understood. † Also what is in it of types that are answers, too: of those a client reads past what it does not know.
#[derive(Clone, Copy, Debug)]
pub struct Told<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Serialize> FromRequest<S> for Told<T> {
    type Rejection = Failed;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failed> {
        let (parts, body) = request.into_parts();
        let bytes = Bytes::from_request(Request::from_parts(parts.clone(), body), state).await?;
        let whole = Request::from_parts(parts, Body::from(bytes.clone()));
        let Json(said) = Json::<Value>::from_request(whole, state).await?;
        let Json(told) = Json::<T>::from_bytes(&bytes)?;
        match unknown_field(&said, &serde_json::to_value(&told).expect("our own types are always JSON")) {
            Some(field) => Err(not_understood(format!("unknown field `{field}`"))),
            None => Ok(Self(told)),
        }
    }
}

/// What was said and is not in what was understood of it, which is written with all of its fields.
fn unknown_field(said: &Value, understood: &Value) -> Option<String> {
    match (said, understood) {
        (Value::Object(said), Value::Object(understood)) => said.iter().find_map(|(name, said)| match understood.get(name) {
            Some(understood) => unknown_field(said, understood).map(|field| format!("{name}.{field}")),
            None => Some(name.clone()),
        }),
        (Value::Array(said), Value::Array(understood)) => {
            said.iter().zip(understood).find_map(|(said, understood)| unknown_field(said, understood))
        }
        _ => None,
    }
}

/// A request that was not done.
#[derive(Debug)]
pub struct Failed(pub ApiError);

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

fn not_understood(what: String) -> Failed {
    Failed(ApiError::new(ErrorCode::BadRequest, what, "nothing was done; docs/api describes what is understood"))
}

impl From<BytesRejection> for Failed {
    fn from(rejection: BytesRejection) -> Self {
        not_understood(rejection.body_text())
    }
}

impl From<JsonRejection> for Failed {
    fn from(rejection: JsonRejection) -> Self {
        not_understood(rejection.body_text())
    }
}

impl From<QueryRejection> for Failed {
    fn from(rejection: QueryRejection) -> Self {
        not_understood(rejection.body_text())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// What a handler gives.
pub type Answer<T> = Result<Json<T>, Failed>;

/// Metrics, as text.
pub fn metrics(text: String) -> Response {
    ([(axum::http::header::CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response()
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;
    use farside_control::Client;
    use farside_control::client::{ClientError, Daemon};
    use farside_control::follower::FollowerAdd;
    use farside_control::routes::PointsQuery;
    use farside_control::source::Limits;

    use super::*;

    /// One of another version, or the other one: its client is told by the same words whether the path or the method is unknown.
    #[tokio::test]
    async fn a_request_that_is_not_known_is_said_in_our_own_words() {
        let folder = tempfile::tempdir().expect("a directory");
        let socket = folder.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let router = Routes::<()>::default().put(routes::FOLLOWERS, async || Json(())).with_state(());
        let served = tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::new(Daemon::Receiver, &socket);
        let answers = [client.followers().await.map(drop), client.failovers().await.map(drop)];
        for answer in answers {
            let Err(ClientError::Api(error)) = answer else { panic!("{answer:?}") };
            assert_eq!(error, ApiError::unknown_request("this daemon"));
        }
        served.abort();
    }

    async fn asked(method: &str, path: &str, body: &'static str) -> Result<String, String> {
        let limits = async |told: Result<Told<Limits>, Failed>| Ok::<_, Failed>(Json(told?.0));
        let follower = async |told: Result<Told<FollowerAdd>, Failed>| Ok::<_, Failed>(Json(told?.0));
        let points =
            async |query: Result<Query<PointsQuery>, QueryRejection>| Ok::<_, Failed>(Json(query?.0.of.unwrap_or_default()));
        let router = Routes::<()>::default()
            .put(routes::LIMITS, limits)
            .post(routes::FOLLOWERS, follower)
            .get(routes::POINTS, points)
            .with_query()
            .post(routes::RELOAD, async || Json(()))
            .get(routes::METRICS, async || metrics(String::new()))
            .with_state(());
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let mut router = router.into_service::<Body>();
        let answer = tower_service::Service::call(&mut router, request.body(Body::from(body)).expect("a request"));
        let answer = answer.await.expect("an answer");
        let is_done = answer.status() == StatusCode::OK;
        let text = axum::body::to_bytes(answer.into_body(), 1 << 16).await.expect("a body");
        if is_done {
            return Ok(String::from_utf8(text.to_vec()).expect("text"));
        }
        let error: ApiError = serde_json::from_slice(&text).expect("our own error");
        assert_eq!(error.code, ErrorCode::BadRequest);
        Err(error.message)
    }

    /// A misspelt field of a limit would take the limit away, and a misspelt word in a query string is not heard.
    #[tokio::test]
    async fn what_is_not_known_of_a_request_is_refused_by_its_name() {
        let named = |answer: Result<String, String>, name: &str| {
            let message = answer.expect_err("it is refused");
            assert!(message.contains(name), "{message}");
        };
        named(asked("PUT", "/v1/limits", r#"{"rate_bytes_per_sec": 5}"#).await, "`rate_bytes_per_sec`");
        let window = r#"{"windows": [{"at": "Mon-Fri 09:00-18:00", "rate_bytes_per_s": 5, "until": "noon"}]}"#;
        named(asked("PUT", "/v1/limits", window).await, "`windows.until`");
        let lock = r#"{"volume": "data", "target": "/x", "lock": {"by": "reflink", "keep": 3, "strickt": true}}"#;
        named(asked("POST", "/v1/followers", lock).await, "`lock.strickt`");
        let behind = r#"{"volume": "data", "target": "/x", "follows": {"behind": {"delay_ms": 5, "delay_s": 5}}}"#;
        named(asked("POST", "/v1/followers", behind).await, "`follows.behind.delay_s`");
        named(asked("POST", "/v1/followers", r#"{"volume": "data", "target": "/x", "overwritte": true}"#).await, "`overwritte`");
        named(asked("GET", "/v1/points?off=db", "").await, "`off`");
        named(asked("POST", "/v1/reload?dry_run=true", "").await, "dry_run=true");

        let all = r#"{"rate_bytes_per_s": 5, "windows": [{"at": "Mon-Fri 09:00-18:00", "rate_bytes_per_s": 5}], "now_bytes_per_s": null}"#;
        assert!(asked("PUT", "/v1/limits", all).await.is_ok() && asked("PUT", "/v1/limits", "{}").await.is_ok());
        assert_eq!(asked("GET", "/v1/points?of=db&limit=3", "").await.expect("known"), "\"db\"");
        assert!(asked("POST", "/v1/reload", "").await.is_ok() && asked("GET", "/metrics?of=whom", "").await.is_ok());
    }
}
