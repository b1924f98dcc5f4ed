//! A server that ignores create-only: a proxy before a real one that loses `If-None-Match`, as gateways and caches do that know only a part of
//! S3. Clients sign that header, so it signs anew what is left, with the keys that it shares with both sides; but only a request whose
//! signature was right. Everything else passes as it came, and the server behind judges it.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue, IF_NONE_MATCH};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response};

use crate::loopback::{self, Broken, Loopback};
use crate::signature::Covered;
use crate::{Bucket, endpoint};

/// Lets every create overwrite. Beside that, the server behind.
#[derive(Debug)]
pub struct StripsCreateOnly {
    behind: Bucket,
    front: Loopback,
}

impl StripsCreateOnly {
    /// Before the server of this bucket, for whoever has its keys.
    pub fn before(bucket: &Bucket) -> Self {
        let behind = bucket.clone();
        let front = Loopback::serve(move |_| {
            let behind = behind.clone();
            service_fn(move |request| pass(behind.clone(), request))
        });
        Self { behind: bucket.clone(), front }
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

async fn pass(behind: Bucket, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Broken> {
    let (mut parts, body) = loopback::whole(request).await?;
    if let Some(authorization) = without_the_condition(&parts, &behind) {
        parts.headers.remove(IF_NONE_MATCH);
        parts.headers.insert(AUTHORIZATION, HeaderValue::try_from(authorization)?);
    }
    loopback::forward(behind.address(), parts, body).await
}

/// The signature of what is left of a request that has the condition and is signed rightly.
fn without_the_condition(request: &Parts, keys: &Bucket) -> Option<String> {
    request.headers.get(IF_NONE_MATCH)?;
    let (mut covered, given) = Covered::of(request)?;
    if covered.signature(&keys.secret_key) != given {
        return None;
    }
    covered.headers.retain(|(name, _)| *name != IF_NONE_MATCH.as_str());
    Some(covered.authorization(&keys.access_key, &keys.secret_key))
}
