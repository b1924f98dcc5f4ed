//! Requests to an endpoint that is spoken to unencrypted, as storage in one's own network often is: what comes is acknowledged at once.
//!
//! A service that sends the head of an answer and then its body, and did not turn Nagle's algorithm off, as RadosGW by default, holds a
//! small body back until the head is acknowledged; this machine's kernel holds an acknowledgement back for 40 ms, to send it along with
//! something. So every small answer on a connection that had been used before came 40 ms late, and whoever needs ten of them one after
//! another, to open a point, waited for half a second. `TCP_QUICKACK` ends that, and lasts only until the next answer: it is set
//! after each read, for which one has to have the socket.
//!
//! Invariant: nothing else changes. Whatever is not a plain request straight to that endpoint (TLS, a proxy, where a service redirects to,
//! credentials of the machine) is left to the client that is there anyway, with its rules.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector as Tcp};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};
use socket2::SockRef;
use tokio::net::TcpStream;
use tower_service::Service;

/// As the other client does.
const KEPT_ALIVE: Duration = Duration::from_secs(15);
const UNANSWERED: Duration = Duration::from_secs(30);

/// Makes clients; those for an endpoint of this address are prompt there.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    /// Host and port.
    pub(crate) endpoint: Authority,
    pub(crate) connects_within: Duration,
}

impl Prompt {
    /// For an endpoint; `None` where it is not one of plain HTTP.
    pub(crate) fn to(endpoint: &str, connects_within: Duration) -> Option<Self> {
        let uri: Uri = endpoint.parse().ok()?;
        let endpoint = uri.authority().filter(|_| uri.scheme() == Some(&Scheme::HTTP))?.clone();
        Some(Self { endpoint, connects_within })
    }
}

impl HttpConnector for Prompt {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = Tcp::new_with_resolver(InTurn(GaiResolver::new()));
        tcp.set_nodelay(true);
        // † As the other client has them: a peer that is gone without a word holds up whoever waits for it for half a minute, and not
        // for as long as the kernel repeats itself.
        tcp.set_keepalive(Some(KEPT_ALIVE));
        tcp.set_keepalive_interval(Some(KEPT_ALIVE));
        tcp.set_keepalive_retries(Some(3));
        tcp.set_tcp_user_timeout(Some(UNANSWERED));
        tcp.set_connect_timeout(Some(self.connects_within));
        let mut client = Client::builder(TokioExecutor::new());
        let client = client.pool_timer(TokioTimer::new()).build(Acknowledging(tcp));
        let other = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Requests { endpoint: self.endpoint.clone(), proxies: Matcher::from_system(), client, other }))
    }
}

/// One of these clients.
#[derive(Debug)]
struct Requests {
    endpoint: Authority,
    proxies: Matcher,
    client: Client<Acknowledging<Tcp<InTurn>>, HttpRequestBody>,
    /// For everything else.
    other: HttpClient,
}

#[async_trait::async_trait]
impl HttpService for Requests {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let to = request.uri();
        let is_ours = to.scheme() == Some(&Scheme::HTTP) && to.authority() == Some(&self.endpoint);
        if !is_ours || self.proxies.intercept(to).is_some() {
            return self.other.execute(request).await;
        }
        let again = request.clone(); // its content is shared
        let answer = self.client.request(request).await.map_err(|error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { kind_of(&error) };
            HttpError::new(kind, error)
        })?;
        if answer.status().is_redirection() {
            return self.other.execute(again).await;
        }
        Ok(answer.map(|body| {
            HttpResponseBody::new(http_body_util::BodyExt::map_err(body, |error: hyper::Error| {
                HttpError::new(kind_of(&error), error)
            }))
        }))
    }
}

/// What an error says of whether the request may be tried again, by the causes that it has.
fn kind_of(error: &(dyn Error + 'static)) -> HttpErrorKind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            if error.is_closed() || error.is_incomplete_message() || error.is_body_write_aborted() {
                return HttpErrorKind::Request;
            }
            if error.is_timeout() {
                return HttpErrorKind::Timeout;
            }
        }
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::TimedOut) => return HttpErrorKind::Timeout,
            Some(
                io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof,
            ) => return HttpErrorKind::Interrupted,
            _ => {}
        }
        cause = error.source();
    }
    HttpErrorKind::Unknown
}

/// The addresses of a name, each connection beginning with the next one: a node that takes connections and answers nothing does not get all of
/// them.
#[derive(Clone, Debug)]
struct InTurn(GaiResolver);

static TURN: AtomicUsize = AtomicUsize::new(0);

impl Service<Name> for InTurn {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let found = self.0.call(name);
        Box::pin(async move {
            let mut all: Vec<SocketAddr> = found.await?.collect();
            let first = TURN.fetch_add(1, Ordering::Relaxed) % all.len().max(1);
            all.rotate_left(first);
            Ok(all.into_iter())
        })
    }
}

/// Connections that acknowledge what they read.
#[derive(Clone, Debug)]
struct Acknowledging<C>(C);

impl Service<Uri> for Acknowledging<Tcp<InTurn>> {
    type Response = Acknowledging<TokioIo<TcpStream>>;
    type Error = <Tcp<InTurn> as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connected = self.0.call(to);
        Box::pin(async move { connected.await.map(Acknowledging) })
    }
}

impl Read for Acknowledging<TokioIo<TcpStream>> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        if read.is_ready() {
            // What cannot be set makes it slower, and is no error.
            let _ = SockRef::from(self.0.inner()).set_tcp_quickack(true);
        }
        read
    }
}

impl Write for Acknowledging<TokioIo<TcpStream>> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Connection for Acknowledging<TokioIo<TcpStream>> {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
