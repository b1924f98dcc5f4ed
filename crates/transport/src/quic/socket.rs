//! The UDP socket under quinn: large buffers, and batches that fit into one datagram's 64 KiB.
//!
//! quinn asks once per wake-up how many segments a batch may have, whatever their size; ten segments of 8,952 bytes are
//! more than the kernel takes in one call, and every such send fails. So the answer is derived from the size of the
//! segments that pass by, and a batch that is too large all the same (the size just grew, or another connection of this
//! socket has a smaller one) is sent in pieces: nothing that quinn hands down is ever too large.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};

/// What one sendmsg takes: the payload of the largest UDP datagram over IPv4.
const BATCH_BYTES_MAX: usize = 65_507;

/// What the kernel gave us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketBuffers {
    /// Bytes of the receive buffer, as the kernel counts them.
    pub receive_bytes: usize,
    /// Bytes of the send buffer, as the kernel counts them.
    pub send_bytes: usize,
}

/// Binds a UDP socket with buffers of `buffer_bytes`, as far as the kernel allows, and wraps it for quinn.
pub(super) fn bind(address: SocketAddr, buffer_bytes: usize) -> io::Result<(Arc<dyn AsyncUdpSocket>, SocketBuffers)> {
    let socket = UdpSocket::bind(address)?;
    // With the privilege the system's maximum does not count; without it the kernel cuts the wish silently.
    if setsockopt(&socket, sockopt::RcvBufForce, &buffer_bytes).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &buffer_bytes)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &buffer_bytes).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &buffer_bytes)?;
    }
    let buffers =
        SocketBuffers { receive_bytes: getsockopt(&socket, sockopt::RcvBuf)?, send_bytes: getsockopt(&socket, sockopt::SndBuf)? };
    socket.set_nonblocking(true)?;
    let inner = TokioRuntime.wrap_udp_socket(socket)?;
    Ok((Arc::new(BatchingSocket { inner, segment_bytes: AtomicUsize::new(0) }), buffers))
}

#[derive(Debug)]
struct BatchingSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The size of the segments of the last batch: the path's MTU now. 0 before the first.
    segment_bytes: AtomicUsize,
}

/// How many segments of this size one batch may have, of at most `offered`.
fn segments_max(segment_bytes: usize, offered: usize) -> usize {
    match segment_bytes {
        0 => offered,
        bytes => offered.min(BATCH_BYTES_MAX / bytes).max(1),
    }
}

impl AsyncUdpSocket for BatchingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(segment_bytes) = transmit.segment_size else { return self.inner.try_send(transmit) };
        if self.segment_bytes.load(Ordering::Relaxed) != segment_bytes {
            self.segment_bytes.store(segment_bytes, Ordering::Relaxed);
        }
        if transmit.contents.len() <= BATCH_BYTES_MAX {
            return self.inner.try_send(transmit);
        }
        let piece_bytes = segments_max(segment_bytes, usize::MAX) * segment_bytes;
        for contents in transmit.contents.chunks(piece_bytes) {
            // "Would block" in the middle makes quinn send the whole again: duplicates, which QUIC drops.
            self.inner.try_send(&Transmit { contents, ..transmit.clone() })?;
        }
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let received = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Err(error)) = &received
            && error.kind() != io::ErrorKind::ConnectionReset
        {
            tracing::error!(%error, "a UDP socket failed");
        }
        received
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        segments_max(self.segment_bytes.load(Ordering::Relaxed), self.inner.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    // The default says yes, which switches MTU discovery off without a word.
    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(usize, Option<usize>)>>);

    impl AsyncUdpSocket for Recorder {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("not polled here")
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            self.0.lock().expect("not poisoned").push((transmit.contents.len(), transmit.segment_size));
            Ok(())
        }

        fn poll_recv(&self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn max_transmit_segments(&self) -> usize {
            64
        }

        fn max_receive_segments(&self) -> usize {
            61
        }

        fn may_fragment(&self) -> bool {
            false
        }
    }

    fn send(socket: &BatchingSocket, length: usize, segment_size: Option<usize>) {
        let contents = vec![0; length];
        let destination = SocketAddr::from(([127, 0, 0, 1], 1));
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size, src_ip: None };
        socket.try_send(&transmit).expect("recorded");
    }

    #[test]
    fn batches_never_exceed_what_one_call_takes() {
        let recorder = Arc::new(Recorder::default());
        let socket = BatchingSocket { inner: recorder.clone(), segment_bytes: AtomicUsize::new(0) };
        assert_eq!((socket.max_transmit_segments(), socket.max_receive_segments(), socket.may_fragment()), (64, 61, false));

        send(&socket, 10 * 1452, Some(1452));
        assert_eq!(socket.max_transmit_segments(), 45);
        // The path has just grown to 8,952 and quinn still believes in ten segments.
        send(&socket, 9 * 8952 + 100, Some(8952));
        assert_eq!(socket.max_transmit_segments(), 7);
        // A probe is alone and says nothing about the segments.
        send(&socket, 9000, None);
        assert_eq!(socket.max_transmit_segments(), 7);
        // The path shrank.
        send(&socket, 2 * 1200, Some(1200));
        assert_eq!(socket.max_transmit_segments(), 54);

        let sent = recorder.0.lock().expect("not poisoned").clone();
        let expected =
            [(14_520, Some(1452)), (7 * 8952, Some(8952)), (2 * 8952 + 100, Some(8952)), (9000, None), (2400, Some(1200))];
        assert_eq!(sent, expected);
    }

    #[test]
    fn absurd_sizes_leave_one_segment() {
        assert_eq!(segments_max(65_507, 64), 1);
        assert_eq!(segments_max(usize::MAX, 64), 1);
        assert_eq!(segments_max(1, 64), 64);
    }
}
