//! QUIC's packets over TLS over TCP, for where UDP does not get through.
//!
//! To quinn a tunnel is a socket with one peer: everything above (handshake, pins, frames, parts, limits) is that of UDP, to the
//! byte. On the TCP connection: TLS 1.3 with the receiver's certificate, pinned as ever, and in it packets, each as
//! `length (u16 LE) ‖ bytes`, length 1 to [`MTU_MAX`]. Who the source is it proves inside, as over UDP.
//!
//! Invariants: packets keep their order and none is dropped while the tunnel lives (a full queue makes quinn wait); each queue
//! holds at most [`QUEUE_BYTES`] and one batch; when it ends, what had arrived is still given out.
//!
//! What it costs is that everything is sealed twice, and that a packet that TCP repeats holds up all behind it.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::configuration::{ALPN_TUNNEL, MTU_MAX, SERVER_NAME};
use crate::Fingerprint;

/// Bytes of packets that wait each way before the side that makes them has to.
const QUEUE_BYTES: usize = 256 << 10;
/// What a packet that waits takes beside its bytes: † a peer that is nobody yet may send them as short as it likes.
const PACKET_COSTS: usize = 64;
/// Bytes that the kernel holds and TCP has not sent: more would only be delay.
const UNSENT_BYTES: u32 = 128 << 10;
/// Asked of the stream at once.
const READ_BYTES: usize = 128 << 10;
/// How long what was sent may stay unread, or not acknowledged.
const UNREAD: Duration = Duration::from_secs(30);
/// How long the last packets that came have to be understood.
const LAST_PACKETS: Duration = Duration::from_millis(250);
/// How long the last packets of a tunnel that is not used any more have to leave.
const FLUSH: Duration = Duration::from_secs(5);

/// A socket whose packets travel over one TCP connection. When it is dropped, what is queued is sent and the connection ended.
#[derive(Debug)]
pub(super) struct Tunnel {
    ends: Arc<Ends>,
    local: SocketAddr,
    peer: SocketAddr,
    ended: watch::Receiver<Option<String>>,
}

#[derive(Debug, Default)]
struct Ends {
    queues: Mutex<Queues>,
    /// There is something to send, or nobody sends any more.
    to_send: Notify,
    /// There is room for what arrives.
    has_room: Notify,
    /// The socket is gone.
    closed: Notify,
}

#[derive(Debug, Default)]
struct Queues {
    /// Packets with their lengths.
    out: BytesMut,
    /// Who waits for room there.
    senders: Vec<Waker>,
    incoming: VecDeque<Bytes>,
    incoming_bytes: usize,
    reader: Option<Waker>,
    /// The connection is gone.
    is_ended: bool,
    /// The socket is gone.
    is_closed: bool,
}

impl Ends {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether more may be read. Once the socket is gone that is nothing: the other half says when the last packets have left.
    fn has_room(&self) -> bool {
        let queues = self.lock();
        !queues.is_closed && queues.incoming_bytes < QUEUE_BYTES
    }

    /// What is to be sent, into `batch`; none and false: nothing yet. Whether nothing comes any more.
    fn take(&self, batch: &mut BytesMut) -> bool {
        let mut queues = self.lock();
        batch.clear();
        std::mem::swap(batch, &mut queues.out);
        let (senders, is_closed) = (std::mem::take(&mut queues.senders), queues.is_closed);
        drop(queues);
        senders.into_iter().for_each(Waker::wake);
        is_closed
    }
}

/// Connects, and finds a receiver there: the pinned one, if not `stranger`.
///
/// # Errors
/// What TCP or TLS say; that it is another service.
pub(super) async fn connect(
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    stranger: impl FnOnce() -> Option<Fingerprint>,
) -> io::Result<Result<Arc<Tunnel>, Fingerprint>> {
    let stream = TcpStream::connect(address).await?;
    let ends = prepare(&stream)?;
    let name = ServerName::try_from(SERVER_NAME).expect("a name");
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_TUNNEL) {
        return Err(io::Error::other("another service answers there"));
    }
    Ok(match stranger() {
        Some(found) => Err(found),
        None => Ok(Tunnel::start(stream, ends, ())),
    })
}

/// Takes a connection of a source. `guest` is kept until it has ended.
///
/// # Errors
/// What TCP or TLS say.
pub(super) async fn accept<G: Send + 'static>(
    stream: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    guest: G,
) -> io::Result<Arc<Tunnel>> {
    let ends = prepare(&stream)?;
    let stream = TlsAcceptor::from(tls).accept(stream).await?;
    Ok(Tunnel::start(stream, ends, guest))
}

fn prepare(stream: &TcpStream) -> io::Result<(SocketAddr, SocketAddr)> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    // Also of a peer that acknowledges and does not read.
    socket.set_tcp_user_timeout(Some(UNREAD))?;
    Ok((stream.local_addr()?, stream.peer_addr()?))
}

impl Tunnel {
    /// `guest` is kept until the TCP connection has ended.
    fn start<G: Send + 'static>(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        (local, peer): (SocketAddr, SocketAddr),
        guest: G,
    ) -> Arc<Self> {
        let ends = Arc::new(Ends::default());
        let (end, ended) = watch::channel(None);
        let task = Arc::clone(&ends);
        tokio::spawn(async move {
            let (input, output) = tokio::io::split(stream);
            let why = tokio::select! {
                why = read(&task, input) => why,
                why = write(&task, output) => why,
                // † Also in the middle of a batch: a peer that reads no more would hold all this for ever.
                () = closed_for(&task, FLUSH) => "this side ended the TCP connection".to_owned(),
            };
            let mut queues = task.lock();
            queues.is_ended = true;
            let (senders, reader) = (std::mem::take(&mut queues.senders), queues.reader.take());
            drop(queues);
            senders.into_iter().chain(reader).for_each(Waker::wake);
            drop(guest);
            end.send_replace(Some(why));
        });
        Arc::new(Self { ends, local, peer, ended })
    }

    /// Waits for the end of the TCP connection, and says why. What arrived before may not be looked at yet.
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let why = ended.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_else(|| "the TCP connection ended".to_owned())
    }
}

/// The end of a tunnel; what arrived before it has had a moment to be understood.
pub(super) async fn lasting(tunnel: &Tunnel) -> String {
    let why = tunnel.ended().await;
    sleep(LAST_PACKETS).await;
    why
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.ends.lock().is_closed = true;
        self.ends.to_send.notify_one();
        self.ends.has_room.notify_one();
        self.ends.closed.notify_one();
    }
}

/// Waits until the socket is gone, and so long after.
async fn closed_for(ends: &Ends, time: Duration) {
    ends.closed.notified().await;
    sleep(time).await;
}

const ENDED: &str = "the peer, or somebody between, ended the TCP connection";

fn broke(error: &io::Error) -> String {
    match error.kind() {
        // As TLS says it: for programmers, with the address of a manual.
        io::ErrorKind::UnexpectedEof => ENDED.to_owned(),
        _ => format!("the TCP connection broke: {error}"),
    }
}

/// A length that no packet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {bytes} bytes came over TCP; they have 1 to {MTU_MAX}")]
pub struct PacketLength {
    /// What it says.
    pub bytes: u16,
}

/// The next packet of what has come over TCP; `None`: not all of it is here.
///
/// # Errors
/// When its length is none: nothing that follows makes sense.
pub fn take_packet(buffer: &mut BytesMut) -> Result<Option<Bytes>, PacketLength> {
    let Some(prefix) = buffer.first_chunk::<2>() else { return Ok(None) };
    let bytes = u16::from_le_bytes(*prefix);
    if bytes == 0 || bytes > MTU_MAX {
        return Err(PacketLength { bytes });
    }
    if buffer.len() < 2 + usize::from(bytes) {
        return Ok(None);
    }
    buffer.advance(2);
    Ok(Some(buffer.split_to(bytes.into()).freeze()))
}

/// Cuts packets out of the stream until it ends.
async fn read(ends: &Ends, mut input: impl AsyncRead + Unpin) -> String {
    let mut buffer = BytesMut::new();
    loop {
        while !ends.has_room() {
            ends.has_room.notified().await;
        }
        buffer.reserve(READ_BYTES);
        match input.read_buf(&mut buffer).await {
            Ok(0) => return ENDED.to_owned(),
            Ok(_) => {}
            Err(error) => return broke(&error),
        }
        let mut queues = ends.lock();
        loop {
            match take_packet(&mut buffer) {
                Ok(Some(packet)) => {
                    queues.incoming_bytes += packet.len() + PACKET_COSTS;
                    queues.incoming.push_back(packet);
                }
                Ok(None) => break,
                Err(error) => return error.to_string(),
            }
        }
        let reader = if queues.incoming.is_empty() { None } else { queues.reader.take() };
        drop(queues);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// Sends what is queued until nobody queues any more, or the connection breaks.
async fn write(ends: &Ends, mut output: impl AsyncWrite + Unpin) -> String {
    let mut batch = BytesMut::new();
    loop {
        let is_closed = ends.take(&mut batch);
        if batch.is_empty() && !is_closed {
            ends.to_send.notified().await;
            continue;
        }
        if is_closed {
            let last = async {
                output.write_all(&batch).await?;
                output.shutdown().await
            };
            let _ = last.await; // nobody is left who could do anything about it
            return "this side ended the TCP connection".to_owned();
        }
        let sent = async {
            output.write_all(&batch).await?;
            output.flush().await
        };
        if let Err(error) = sent.await {
            return broke(&error);
        }
    }
}

impl AsyncUdpSocket for Tunnel {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable(Arc::clone(&self.ends)))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut queues = self.ends.lock();
        if queues.is_ended {
            return Ok(()); // lost, as where nobody listens
        }
        if queues.out.len() >= QUEUE_BYTES {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for packet in transmit.contents.chunks(transmit.segment_size.unwrap_or(usize::MAX).max(1)) {
            // Longer ones are not made: it is the endpoint's limit, too.
            let Ok(length) = u16::try_from(packet.len()) else { continue };
            queues.out.put_u16_le(length);
            queues.out.put_slice(packet);
        }
        drop(queues);
        self.ends.to_send.notify_one();
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let mut queues = self.ends.lock();
        let mut received = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let Some(packet) = queues.incoming.pop_front() else { break };
            queues.incoming_bytes -= packet.len() + PACKET_COSTS;
            let len = packet.len().min(buffer.len()); // all fits: it is the endpoint's limit, too
            buffer[..len].copy_from_slice(&packet[..len]);
            *meta = RecvMeta { addr: self.peer, len, stride: len.max(1), ecn: None, dst_ip: None };
            received += 1;
        }
        if received == 0 {
            // Also after the end: that is told to the connection, whose words say more than an endpoint's that failed.
            queues.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(queues);
        self.ends.has_room.notify_one();
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        BATCH_PACKETS
    }
}

/// What quinn makes at most of one batch.
const BATCH_PACKETS: usize = 10;

/// Waits for room in the queue of what is to be sent.
#[derive(Debug)]
struct Writable(Arc<Ends>);

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queues = self.0.lock();
        if queues.is_ended || queues.out.len() < QUEUE_BYTES {
            return Poll::Ready(Ok(()));
        }
        if !queues.senders.iter().any(|waker| waker.will_wake(cx.waker())) {
            queues.senders.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes alone were counted: thirty times as much was held of packets of one.
    #[tokio::test]
    async fn short_packets_are_held_in_little_memory_too() {
        let ends = Ends::default();
        let packets = [1, 0, 7].repeat(300_000);
        tokio::select! {
            biased;
            ended = read(&ends, &packets[..]) => panic!("all were read: {ended}"),
            () = std::future::ready(()) => {}
        }
        let held = ends.lock().incoming.len();
        assert!((1..=QUEUE_BYTES / PACKET_COSTS + READ_BYTES).contains(&held), "{held} packets");
    }

    #[test]
    fn an_end_that_tls_did_not_announce_is_said_without_its_manual() {
        let of_tls = io::Error::new(io::ErrorKind::UnexpectedEof, "peer closed connection …: https://docs.rs/rustls/…");
        assert_eq!(broke(&of_tls), ENDED);
        assert!(broke(&io::ErrorKind::ConnectionReset.into()).contains("broke: connection reset"));
    }
}
