//! A server that keeps versions and holds create-only, as Amazon's does: a proxy before Ceph's, which keeps versions and does not hold it in
//! buckets that do (several who create an object at once are all told that it is theirs). It lets one create after the other through, and
//! none of an object that is there. Everything else passes as it came.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::IF_NONE_MATCH;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio::sync::Mutex;

use crate::loopback::{self, Broken, Loopback};
use crate::{Bucket, http};

const THERE: &str = "<Error><Code>PreconditionFailed</Code><Message>it is there</Message></Error>";

/// Holds create-only. Beside that, the server behind.
#[derive(Debug)]
pub struct HoldsCreateOnly {
    behind: Bucket,
    front: Loopback,
}

impl HoldsCreateOnly {
    /// Before the server of this bucket: it holds for whoever comes through here.
    pub fn before(bucket: &Bucket) -> Self {
        let (behind, turn) = (bucket.clone(), Arc::new(Mutex::new(())));
        let front = Loopback::serve(move |_| {
            let (behind, turn) = (behind.clone(), Arc::clone(&turn));
            service_fn(move |request| pass(behind.clone(), Arc::clone(&turn), request))
        });
        Self { behind: bucket.clone(), front }
    }

    /// The bucket, as it is seen through this.
    pub fn bucket(&self) -> Bucket {
        self.behind.through(self.front.address())
    }
}

async fn pass(behind: Bucket, turn: Arc<Mutex<()>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Broken> {
    let (parts, body) = loopback::whole(request).await?;
    let address = behind.address();
    if !parts.headers.contains_key(IF_NONE_MATCH) {
        return loopback::forward(address, parts, body).await;
    }
    let path = parts.uri.path().to_owned();
    let _turn = turn.lock().await;
    let answer = tokio::task::spawn_blocking(move || http::signed("HEAD", &behind, (&path, ""), &[])).await??;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(Response::builder().status(StatusCode::PRECONDITION_FAILED).body(Full::from(THERE))?);
    }
    loopback::forward(address, parts, body).await
}
