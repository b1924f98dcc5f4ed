//! HTTP on a daemon's socket: a router that knows what it serves, and how a request fails.
//!
//! Invariant: whatever is wrong with a request, the answer is an [`ApiError`] as JSON; no body is read beyond its limit.

use std::convert::Infallible;

use axum::extract::DefaultBodyLimit;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use farside_control::{ApiError, ErrorCode, REQUEST_BYTES_MAX};

/// A router that can be asked what it serves.
#[derive(Debug)]
pub struct Routes<S> {
    router: Router<S>,
    served: Vec<(&'static str, &'static str)>,
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self { router: Router::new(), served: Vec::new() }
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
        self.served.push((method, path));
        Self { router: self.router.route(path, handler), ..self }
    }

    /// Methods and paths.
    pub fn served(&self) -> &[(&'static str, &'static str)] {
        &self.served
    }

    /// Ready to be served.
    pub fn with_state(self, state: S) -> Router {
        // It does not know which daemon serves it.
        let unknown = async || Failed(ApiError::unknown_request("this daemon"));
        self.router
            .fallback(unknown)
            .method_not_allowed_fallback(unknown)
            .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
            .with_state(state)
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

impl From<JsonRejection> for Failed {
    fn from(rejection: JsonRejection) -> Self {
        Self(ApiError::new(ErrorCode::BadRequest, rejection.body_text(), "docs/api describes what is understood"))
    }
}

impl From<QueryRejection> for Failed {
    fn from(rejection: QueryRejection) -> Self {
        Self(ApiError::new(ErrorCode::BadRequest, rejection.body_text(), "docs/api describes what is understood"))
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
    use farside_control::client::{ClientError, Daemon};
    use farside_control::{Client, routes};

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
}
