//! Who is connected to the API's socket: so many at most, and a newcomer takes the place of whoever has been there longest.
//!
//! Invariant: clients that connect and say nothing, or a byte now and then, neither keep others out nor use up the files that
//! the daemon needs for its work. Deliberately no time-outs: who comes first can wait as long as nobody needs the place.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream, unix::SocketAddr};

/// Clients of the API at once. Most requests take milliseconds: who is being served is hardly ever the oldest of so many.
pub const CLIENTS_MAX: usize = 64;

/// Accepts clients, and sends the oldest away when there are too many. For `axum::serve`.
#[derive(Debug)]
pub struct Clients {
    listener: UnixListener,
    known: VecDeque<Weak<UnixStream>>,
}

impl Clients {
    /// Of a socket.
    pub fn new(listener: UnixListener) -> Self {
        Self { listener, known: VecDeque::with_capacity(CLIENTS_MAX) }
    }

    fn take(&mut self, stream: UnixStream) -> Client {
        self.known.retain(|client| client.strong_count() > 0);
        if self.known.len() >= CLIENTS_MAX
            && let Some(oldest) = self.known.pop_front().and_then(|client| client.upgrade())
        {
            // Its task reads the end and drops it. It may have ended by itself meanwhile, which is as good.
            let _ = shutdown(oldest.as_raw_fd(), Shutdown::Both);
        }
        let stream = Arc::new(stream);
        self.known.push_back(Arc::downgrade(&stream));
        Client(stream)
    }
}

impl axum::serve::Listener for Clients {
    type Io = Client;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Client, SocketAddr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (self.take(stream), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One client's connection.
#[derive(Debug)]
pub struct Client(Arc<UnixStream>);

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(bytes) => {
                    buffer.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match shutdown(self.0.as_raw_fd(), Shutdown::Write) {
            Ok(()) | Err(nix::errno::Errno::ENOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Asks, and reads the answer to its end.
    async fn ask(path: &std::path::Path) -> String {
        let mut stream = UnixStream::connect(path).await.expect("connected");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    }

    #[tokio::test]
    async fn clients_that_never_finish_a_request_give_way_to_others() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("api.sock");
        let listener = Clients::new(UnixListener::bind(&path).expect("bound"));
        let router = Router::new().route("/", get(async || "served"));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let mut slow = Vec::new();
        for _ in 0..3 * CLIENTS_MAX {
            let mut stream = UnixStream::connect(&path).await.expect("connected");
            let _ = stream.write_all(b"GET / HT").await; // it may have been sent away already
            slow.push(stream);
        }
        assert!(ask(&path).await.ends_with("served"));
        // The first one is hung up on; the newest may go on.
        assert_eq!(slow[0].read(&mut [0; 8]).await.unwrap_or(0), 0);
        let mut newest = slow.pop().expect("there are some");
        newest.write_all(b"TP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("written");
        let mut answer = String::new();
        newest.read_to_string(&mut answer).await.expect("read");
        assert!(answer.ends_with("served"), "{answer}");
        server.abort();
    }
}
