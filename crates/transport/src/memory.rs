//! Connections within one process, for tests: the same contract as QUIC, and handles to break it in every way.
//!
//! Invariant: a frame or chunk that was sent before a cut may be lost, but never arrives changed, twice or out of order.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

use crate::connection::{bounded, readable};
use crate::{
    Carrier, CloseCode, Closed, Connection, ConnectionError, Dial, DialError, FRAME_BYTES_MAX, Fingerprint, HEADER_BYTES_MAX,
    IncomingPart, PartError, PartReceiver, PartSender, Peer, Statistics, TrySendError,
};

/// Frames that wait unread in one direction.
const FRAMES_QUEUED: usize = 64;
/// Part streams that wait unaccepted.
const PARTS_QUEUED: usize = 32;
/// Chunks that wait unread in one part stream.
const CHUNKS_QUEUED: usize = 4;

/// A place where a source and a receiver meet.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Peer,
    receiver: Peer,
    state: Mutex<NetworkState>,
    accepted: AsyncMutex<mpsc::UnboundedReceiver<Arc<dyn Connection>>>,
    to_accept: mpsc::UnboundedSender<Arc<dyn Connection>>,
}

#[derive(Debug, Default)]
struct NetworkState {
    refusal: Option<DialError>,
    open: Vec<Weak<Wire>>,
}

impl Network {
    /// A network with a source and a receiver of these names.
    ///
    /// # Panics
    /// When a name is not a valid name.
    pub fn new(source: &str, receiver: &str) -> Self {
        let peer = |name: &str| Peer {
            name: name.parse().expect("a valid name"),
            fingerprint: Fingerprint::of(name.as_bytes()),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            carrier: Carrier::Udp,
        };
        let (to_accept, accepted) = mpsc::unbounded_channel();
        Self {
            inner: Arc::new(Inner {
                source: peer(source),
                receiver: peer(receiver),
                state: Mutex::default(),
                accepted: AsyncMutex::new(accepted),
                to_accept,
            }),
        }
    }

    /// The source's way in.
    pub fn dialer(&self) -> MemoryDialer {
        MemoryDialer { network: self.clone() }
    }

    /// The receiver's end of the next connection.
    ///
    /// # Panics
    /// Never: the network keeps its own sender.
    pub async fn accept(&self) -> Arc<dyn Connection> {
        self.inner.accepted.lock().await.recv().await.expect("the network keeps a sender")
    }

    /// From now on every attempt fails so; `None` lets them through again.
    pub fn refuse(&self, refusal: Option<DialError>) {
        self.state().refusal = refusal;
    }

    /// Breaks every open connection, as a cable that is pulled: both ends see [`Closed::TimedOut`], and what was in flight
    /// is lost.
    pub fn cut(&self) {
        for wire in std::mem::take(&mut self.state().open).iter().filter_map(Weak::upgrade) {
            wire.end(Closed::TimedOut, Closed::TimedOut);
        }
    }

    /// Resets every part stream whose body is not finished, in both directions, and leaves the connections alone.
    pub fn reset_parts(&self) {
        for wire in self.state().open.iter().filter_map(Weak::upgrade) {
            wire.resets.send_modify(|count| *count += 1);
        }
    }

    fn state(&self) -> MutexGuard<'_, NetworkState> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects within a [`Network`].
#[derive(Clone, Debug)]
pub struct MemoryDialer {
    network: Network,
}

#[async_trait]
impl Dial for MemoryDialer {
    async fn dial(&self) -> Result<Arc<dyn Connection>, DialError> {
        if let Some(refusal) = self.network.state().refusal.clone() {
            return Err(refusal);
        }
        let (source, receiver) = pair(self.network.inner.source.clone(), self.network.inner.receiver.clone());
        let mut state = self.network.state();
        state.open.retain(|wire| wire.strong_count() > 0);
        state.open.push(Arc::downgrade(&source.wire));
        drop(state);
        let _ = self.network.inner.to_accept.send(Arc::new(receiver));
        Ok(Arc::new(source))
    }
}

/// Two ends of one connection: the source's (which sees `receiver` as its peer) and the receiver's.
pub fn pair(source: Peer, receiver: Peer) -> (MemoryConnection, MemoryConnection) {
    let wire = Arc::new(Wire {
        ended: [watch::channel(None).0, watch::channel(None).0],
        resets: watch::channel(0).0,
        bytes: [AtomicU64::new(0), AtomicU64::new(0)],
    });
    let (frames_up, frames_at_receiver) = mpsc::channel(FRAMES_QUEUED);
    let (frames_down, frames_at_source) = mpsc::channel(FRAMES_QUEUED);
    let (parts_up, parts_at_receiver) = mpsc::channel(PARTS_QUEUED);
    let (parts_down, parts_at_source) = mpsc::channel(PARTS_QUEUED);
    let at_source = MemoryConnection {
        side: 0,
        peer: receiver,
        wire: Arc::clone(&wire),
        frames_out: frames_up,
        parts_out: parts_up,
        frames_in: AsyncMutex::new(frames_at_source),
        parts_in: AsyncMutex::new(parts_at_source),
    };
    let at_receiver = MemoryConnection {
        side: 1,
        peer: source,
        wire,
        frames_out: frames_down,
        parts_out: parts_down,
        frames_in: AsyncMutex::new(frames_at_receiver),
        parts_in: AsyncMutex::new(parts_at_receiver),
    };
    (at_source, at_receiver)
}

/// What both ends share.
#[derive(Debug)]
struct Wire {
    /// How the connection ended, as each side sees it.
    ended: [watch::Sender<Option<Closed>>; 2],
    /// Counts up whenever unfinished parts are to be reset.
    resets: watch::Sender<u64>,
    bytes: [AtomicU64; 2],
}

impl Wire {
    fn end(&self, as_source_sees: Closed, as_receiver_sees: Closed) {
        for (ended, how) in self.ended.iter().zip([as_source_sees, as_receiver_sees]) {
            ended.send_if_modified(|state| {
                state.is_none() && {
                    *state = Some(how);
                    true
                }
            });
        }
    }

    fn how_it_ended(&self, side: usize) -> Option<Closed> {
        self.ended[side].borrow().clone()
    }

    async fn ended(&self, side: usize) -> Closed {
        let mut ended = self.ended[side].subscribe();
        let how = ended.wait_for(Option::is_some).await.expect("the wire keeps its sender");
        how.clone().expect("waited for")
    }
}

/// One end of a connection in memory.
#[derive(Debug)]
pub struct MemoryConnection {
    side: usize,
    peer: Peer,
    wire: Arc<Wire>,
    frames_out: mpsc::Sender<Bytes>,
    parts_out: mpsc::Sender<IncomingPart>,
    frames_in: AsyncMutex<mpsc::Receiver<Bytes>>,
    parts_in: AsyncMutex<mpsc::Receiver<IncomingPart>>,
}

impl Drop for MemoryConnection {
    fn drop(&mut self) {
        self.close(CloseCode::Done, "dropped");
    }
}

impl MemoryConnection {
    fn gone(&self) -> ConnectionError {
        ConnectionError::Closed(self.close_reason().unwrap_or(Closed::TimedOut))
    }

    fn alive(&self) -> Result<(), ConnectionError> {
        self.close_reason().map_or(Ok(()), |closed| Err(closed.into()))
    }
}

#[async_trait]
impl Connection for MemoryConnection {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    async fn send(&self, frame: Bytes) -> Result<(), ConnectionError> {
        check_frame(&frame)?;
        self.alive()?;
        self.wire.bytes[self.side].fetch_add(frame.len() as u64, Ordering::Relaxed);
        tokio::select! {
            biased;
            closed = self.closed() => Err(closed.into()),
            sent = self.frames_out.send(frame) => sent.map_err(|_| self.gone()),
        }
    }

    fn try_send(&self, frame: Bytes) -> Result<(), TrySendError> {
        check_frame(&frame)?;
        self.alive()?;
        let length = frame.len() as u64;
        match self.frames_out.try_send(frame) {
            Ok(()) => {
                self.wire.bytes[self.side].fetch_add(length, Ordering::Relaxed);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(frame)) => Err(TrySendError::Full(frame)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.gone().into()),
        }
    }

    async fn recv(&self) -> Result<Bytes, ConnectionError> {
        tokio::select! {
            biased;
            frame = async { self.frames_in.lock().await.recv().await } => frame.ok_or_else(|| self.gone()),
            closed = self.closed() => Err(closed.into()),
        }
    }

    async fn open_part(&self, header: Bytes) -> Result<Box<dyn PartSender>, ConnectionError> {
        check_header(&header)?;
        self.alive()?;
        let (chunks, body) = mpsc::channel(CHUNKS_QUEUED);
        let resets = self.wire.resets.subscribe();
        let body = MemoryPartReceiver {
            side: 1 - self.side,
            wire: Arc::clone(&self.wire),
            chunks: body,
            resets: resets.clone(),
            pending: Bytes::new(),
            finished: false,
        };
        let incoming = IncomingPart { header, body: Box::new(body) };
        tokio::select! {
            biased;
            closed = self.closed() => return Err(closed.into()),
            sent = self.parts_out.send(incoming) => sent.map_err(|_| self.gone())?,
        }
        Ok(Box::new(MemoryPartSender { side: self.side, wire: Arc::clone(&self.wire), chunks, resets }))
    }

    async fn accept_part(&self) -> Result<IncomingPart, ConnectionError> {
        tokio::select! {
            biased;
            closed = self.closed() => Err(closed.into()),
            part = async { self.parts_in.lock().await.recv().await } => part.ok_or_else(|| self.gone()),
        }
    }

    fn close(&self, code: CloseCode, reason: &str) {
        let reason = readable(bounded(reason).as_bytes());
        let here = Closed::Here { code, reason: reason.clone() };
        let there = Closed::ByPeer { code, reason };
        if self.side == 0 { self.wire.end(here, there) } else { self.wire.end(there, here) }
    }

    async fn closed(&self) -> Closed {
        self.wire.ended(self.side).await
    }

    async fn sent(&self) {
        self.closed().await;
    }

    async fn told(&self) {
        self.closed().await;
    }

    fn close_reason(&self) -> Option<Closed> {
        self.wire.how_it_ended(self.side)
    }

    fn statistics(&self) -> Statistics {
        let count = |side: usize| self.wire.bytes[side].load(Ordering::Relaxed);
        Statistics { sent_bytes: count(self.side), received_bytes: count(1 - self.side), ..Statistics::default() }
    }
}

fn check_frame(frame: &Bytes) -> Result<(), ConnectionError> {
    let (bytes, max) = (frame.len(), FRAME_BYTES_MAX);
    if bytes > max { Err(ConnectionError::FrameTooLong { bytes, max }) } else { Ok(()) }
}

fn check_header(header: &Bytes) -> Result<(), ConnectionError> {
    let (bytes, max) = (header.len(), HEADER_BYTES_MAX);
    if bytes > max { Err(ConnectionError::HeaderTooLong { bytes, max }) } else { Ok(()) }
}

#[derive(Debug)]
enum Chunk {
    Data(Bytes),
    End,
}

#[derive(Debug)]
struct MemoryPartSender {
    side: usize,
    wire: Arc<Wire>,
    chunks: mpsc::Sender<Chunk>,
    resets: watch::Receiver<u64>,
}

impl MemoryPartSender {
    fn alive(&self) -> Result<(), PartError> {
        if let Some(closed) = self.wire.how_it_ended(self.side) {
            return Err(closed.into());
        }
        if self.resets.has_changed().unwrap_or(true) { Err(PartError::Stopped) } else { Ok(()) }
    }
}

#[async_trait]
impl PartSender for MemoryPartSender {
    async fn write(&mut self, chunk: Bytes) -> Result<(), PartError> {
        self.alive()?;
        self.wire.bytes[self.side].fetch_add(chunk.len() as u64, Ordering::Relaxed);
        tokio::select! {
            biased;
            closed = self.wire.ended(self.side) => Err(closed.into()),
            _ = self.resets.changed() => Err(PartError::Stopped),
            sent = self.chunks.send(Chunk::Data(chunk)) => sent.map_err(|_| PartError::Stopped),
        }
    }

    fn finish(self: Box<Self>) -> Result<(), PartError> {
        self.alive()?;
        // The end must not wait for room: it takes a task of its own when there is none.
        if let Err(mpsc::error::TrySendError::Full(end)) = self.chunks.try_send(Chunk::End) {
            tokio::spawn(async move { self.chunks.send(end).await });
        }
        Ok(())
    }

    fn reset(self: Box<Self>) {}
}

#[derive(Debug)]
struct MemoryPartReceiver {
    side: usize,
    wire: Arc<Wire>,
    chunks: mpsc::Receiver<Chunk>,
    resets: watch::Receiver<u64>,
    pending: Bytes,
    finished: bool,
}

#[async_trait]
impl PartReceiver for MemoryPartReceiver {
    async fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, PartError> {
        if self.finished {
            return Ok(None);
        }
        if self.pending.is_empty() {
            let chunk = tokio::select! {
                biased;
                closed = self.wire.ended(self.side) => return Err(closed.into()),
                _ = self.resets.changed() => return Err(PartError::Reset),
                chunk = self.chunks.recv() => chunk,
            };
            match chunk {
                None => return Err(PartError::Reset),
                Some(Chunk::End) => {
                    self.finished = true;
                    return Ok(None);
                }
                Some(Chunk::Data(data)) => self.pending = data,
            }
        }
        let length = self.pending.len().min(bytes_max.max(1));
        Ok(Some(self.pending.split_to(length)))
    }
}

/// A name for tests.
#[cfg(test)]
pub(crate) fn name(text: &str) -> farside_region::Name {
    text.parse().expect("a valid name")
}

#[cfg(test)]
mod tests;
