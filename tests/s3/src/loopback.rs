//! An HTTP server on a free port of loopback, with a runtime of its own, gone when it is dropped; and what a proxy does with a
//! request: read it whole, ask the server behind over a connection of its own, read the answer whole.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, TRANSFER_ENCODING};
use hyper::http::{request, response};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// What goes wrong in a connection ends it.
pub(crate) type Broken = Box<dyn Error + Send + Sync>;

#[derive(Debug)]
pub(crate) struct Loopback {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Loopback {
    /// Serves each connection with what `service` makes for it. A service that fails closes its connection without an answer.
    pub(crate) fn serve<S, B>(service: impl Fn(&TcpStream) -> S + Send + 'static) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Into<Broken>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Broken>,
    {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let runtime = Runtime::new().expect("threads");
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("inside a runtime");
            while let Ok((stream, _)) = listener.accept().await {
                let service = service(&stream);
                let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection); // its errors are the client's to see
            }
        });
        Self { address, runtime: Some(runtime) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        // A runtime waits for what it has begun, which async code may not do on its own thread.
        let runtime = self.runtime.take();
        let _ = std::thread::spawn(move || drop(runtime)).join();
    }
}

/// A request with its whole body.
pub(crate) async fn whole(request: Request<Incoming>) -> Result<(request::Parts, Bytes), Broken> {
    let (parts, body) = request.into_parts();
    Ok((parts, body.collect().await?.to_bytes()))
}

/// Sends a request on as it is, also its `Host`, which is signed.
pub(crate) async fn forward(to: SocketAddr, parts: request::Parts, body: Bytes) -> Result<Response<Full<Bytes>>, Broken> {
    let stream = TokioIo::new(TcpStream::connect(to).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
    let (mut parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    without_framing(&mut parts);
    Ok(Response::from_parts(parts, Full::new(body)))
}

/// What is said of one connection does not hold for the other.
fn without_framing(parts: &mut response::Parts) {
    parts.headers.remove(CONNECTION);
    parts.headers.remove(TRANSFER_ENCODING);
}
