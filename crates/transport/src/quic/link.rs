//! One authenticated QUIC connection behind the [`Connection`] trait.
//!
//! Two tasks belong to it: one writes queued frames in order (so that giving up a `send` never leaves half a frame), one
//! accepts part streams and reads their headers side by side (so that a slow one holds up no other). Both end with the
//! connection, and dropping the last handle ends the connection.
//!
//! Other connections of the same two sides may carry its parts, too: its *lanes*, for where each flow of packets gets only so much.
//! Frames go over the first one alone. Invariant: they end together, whichever ends first; so to who uses it it is one connection.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use farside_region::Name;
use quinn::{ConnectionError as QuinnError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};
use tokio::time::{sleep, timeout};

use super::configuration::FIRST_WINDOW_BYTES;
use super::frames::{FrameError, FrameReader, FrameTooLong, write_frame};
use super::tunnel::{self, Tunnel};
use super::window::Window;
use crate::connection::{bounded, readable};
use crate::{
    Carrier, CloseCode, Closed, Connection, ConnectionError, FRAME_BYTES_MAX, HEADER_BYTES_MAX, IncomingPart, PartError,
    PartReceiver, PartSender, Peer, Statistics, TrySendError,
};

/// Frames that wait to be written, by number and by size.
const FRAMES_QUEUED: usize = 64;
const FRAME_BYTES_QUEUED: usize = 2 << 20;
const _: () = assert!(FRAME_BYTES_QUEUED >= FRAME_BYTES_MAX, "any frame fits the queue");
/// Connections that are one, at most.
pub const LANES_MAX: usize = 8;
/// How often it is looked whether the last word has gone out.
const SENT_LOOK: Duration = Duration::from_millis(1);
/// What is given to a tunnel for what it was handed.
const TUNNELLED: Duration = Duration::from_millis(20);
/// After the end of a lane by its peer's hand so long that of all is waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Accepted part streams that wait for [`Connection::accept_part`].
const PARTS_QUEUED: usize = 32;
/// What a stream is reset or stopped with; its number says nothing more.
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// A connection over QUIC. Made by [`crate::QuicDialer`] and [`crate::Listener`].
#[derive(Debug)]
pub struct QuicConnection {
    peer: Peer,
    core: Arc<Core>,
    frames_out: mpsc::Sender<Queued>,
    /// Bytes that `frames_out` has room for. Closed when nothing is written any more.
    room: Arc<Semaphore>,
    frames_in: Mutex<FrameReader>,
    parts_in: Mutex<mpsc::Receiver<IncomingPart>>,
    /// Where the parts of another lane go. It lives as long as something can come.
    to_accept: mpsc::WeakSender<IncomingPart>,
    /// Which lane is asked first.
    turn: AtomicUsize,
    /// A dialled connection keeps its endpoint's socket alive.
    endpoint: Option<quinn::Endpoint>,
}

/// A frame, and the room that it takes until it is written.
type Queued = (Bytes, OwnedSemaphorePermit);

/// What the tasks and the streams need too.
#[derive(Debug)]
pub(super) struct Core {
    connection: quinn::Connection,
    carrier: Carrier,
    /// What was said when this side closed first.
    here: OnceLock<(CloseCode, String)>,
    /// So many datagrams had been sent before.
    closed_after: OnceLock<u64>,
    /// How what carries it ended, if that was first.
    lost: OnceLock<Closed>,
    /// Part streams that are being written.
    writing: AtomicUsize,
    /// Others that carry its parts; of one of these there are none.
    lanes: StdMutex<Vec<Joined>>,
    /// Whose parts it carries, if it is one of these.
    led: OnceLock<Weak<Core>>,
    /// A part went over it, or is about to. Looked at and set under `lanes` of the one that it is a lane of.
    carried: AtomicBool,
    /// What its peer may send unread, for who shares it out.
    window: StdMutex<Window>,
    /// It owes what is to be read first.
    owes: AtomicBool,
}

/// Another lane.
#[derive(Debug)]
struct Joined {
    core: Arc<Core>,
    _endpoint: Option<quinn::Endpoint>,
}

impl Core {
    pub(super) fn new(connection: quinn::Connection, carrier: Carrier) -> Arc<Self> {
        let (here, lost) = (OnceLock::new(), OnceLock::new());
        Arc::new(Self {
            connection,
            carrier,
            here,
            closed_after: OnceLock::new(),
            lost,
            writing: AtomicUsize::new(0),
            lanes: StdMutex::default(),
            led: OnceLock::new(),
            carried: AtomicBool::new(false),
            window: StdMutex::new(Window::new(FIRST_WINDOW_BYTES)),
            owes: AtomicBool::new(false),
        })
    }

    /// Its peer may have so much sent and not read.
    pub(super) fn share(&self, bytes: u32) {
        self.with_window(|window| window.want(bytes));
    }

    /// So much of a part was read.
    fn was_read(&self, bytes: usize) {
        if self.owes.load(Ordering::Relaxed) {
            self.with_window(|window| window.read(bytes));
        }
    }

    fn with_window(&self, change: impl FnOnce(&mut Window) -> Option<u32>) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = change(&mut window) {
            self.connection.set_receive_window(VarInt::from_u32(bytes));
        }
        self.owes.store(window.is_owing(), Ordering::Relaxed);
    }

    fn lanes(&self) -> MutexGuard<'_, Vec<Joined>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that one is a lane of it from here on: not where it has ended, or has as many as it may have.
    fn take_lane(self: &Arc<Self>, lane: &Arc<Self>, endpoint: Option<quinn::Endpoint>) -> bool {
        let mut lanes = self.lanes();
        if lanes.len() + 1 >= LANES_MAX || self.connection.close_reason().is_some() {
            return false;
        }
        if lane.led.set(Arc::downgrade(self)).is_err() {
            return false;
        }
        lanes.push(Joined { core: Arc::clone(lane), _endpoint: endpoint });
        drop(lanes);
        tokio::spawn(end_together(
            (Arc::downgrade(self), self.connection.clone()),
            (Arc::downgrade(lane), lane.connection.clone()),
        ));
        true
    }

    /// Closes when the TCP connection below is gone: nothing can come any more, and the idle time-out would only find that out.
    pub(super) async fn end_with(core: Weak<Self>, connection: quinn::Connection, tunnel: &Tunnel) {
        tokio::select! {
            _ = connection.closed() => return,
            // What came last may be the peer's word, which says more.
            why = tunnel::lasting(tunnel) => if let Some(core) = core.upgrade() {
                core.lose(Closed::Broken(readable(why.as_bytes())));
            },
        }
        connection.closed().await;
    }

    fn lose(&self, why: Closed) {
        if self.connection.close_reason().is_none() && self.here.get().is_none() && self.lost.set(why.clone()).is_ok() {
            let words = why.to_string();
            self.connection.close(VarInt::from_u32(CloseCode::Internal.number()), bounded(&words).as_bytes());
        }
    }

    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        let reason = bounded(reason);
        // A close that comes after the end says nothing any more.
        let sent = self.connection.stats().udp_tx.datagrams;
        if self.connection.close_reason().is_none() && self.here.set((code, reason.to_owned())).is_ok() {
            let _ = self.closed_after.set(sent); // the first
            self.connection.close(VarInt::from_u32(code.number()), reason.as_bytes());
        }
        // One that joins at this moment is ended by who waits for both.
        self.lanes().iter().for_each(|lane| lane.core.close(code, reason));
    }

    pub(super) fn quinn(&self) -> &quinn::Connection {
        &self.connection
    }

    pub(super) fn carrier(&self) -> Carrier {
        self.carrier
    }

    pub(super) async fn closed(&self) -> Closed {
        let error = self.connection.closed().await;
        self.translate(&error)
    }

    /// A part comes over it.
    fn carries(&self) {
        let led = self.led.get().and_then(Weak::upgrade);
        let _lanes = led.as_ref().map(|led| led.lanes());
        self.carried.store(true, Ordering::Relaxed);
    }

    /// Why what it is a lane of has ended, if it is one and that has.
    fn ended_with(&self) -> Option<Closed> {
        let led = self.led.get()?.upgrade()?;
        led.connection.close_reason().map(|error| led.translate(&error))
    }

    /// As [`Core::translate`]. † Where the peer has ended all of them, the word that counts is on the first, and may come later.
    async fn translate_all(&self, error: &QuinnError) -> Closed {
        if let (QuinnError::ApplicationClosed(_), Some(led)) = (error, self.led.get().and_then(Weak::upgrade)) {
            let _ = timeout(LAST_WORDS, led.connection.closed()).await; // then it is said what is known
        }
        self.translate(error)
    }

    /// Whether that lane was taken out: nothing was on its way there, and it goes on with the others.
    fn does_without(&self, lane: &Weak<Self>) -> bool {
        let mut lanes = self.lanes();
        let is_it = |one: &Joined| std::ptr::eq(Arc::as_ptr(&one.core), lane.as_ptr());
        let at = lanes.iter().position(|one| is_it(one) && !one.core.carried.load(Ordering::Relaxed));
        at.map(|at| lanes.swap_remove(at)).is_some()
    }

    fn translate(&self, error: &QuinnError) -> Closed {
        // What is asked of a part is asked of the whole.
        if let Some(closed) = self.ended_with() {
            return closed;
        }
        match (error, self.here.get(), self.lost.get()) {
            (QuinnError::LocallyClosed, Some((code, reason)), _) => Closed::Here { code: *code, reason: reason.clone() },
            (QuinnError::LocallyClosed, None, Some(why)) => why.clone(),
            _ => translate(error),
        }
    }

    /// Why the connection ended, from an error that only says that it did.
    fn ended(&self) -> Closed {
        match self.connection.close_reason() {
            Some(error) => self.translate(&error),
            None => Closed::Broken("a stream ended that belongs to the whole connection".to_owned()),
        }
    }
}

/// Ends a lane with what it is one of, or that with its lane: what was on its way there is lost. Of a lane over which nothing went nothing
/// is: one that half joined ends nobody.
async fn end_together((led, leading): (Weak<Core>, quinn::Connection), (lane, carrying): (Weak<Core>, quinn::Connection)) {
    tokio::select! {
        _ = leading.closed() => if let Some(lane) = lane.upgrade() {
            lane.close(CloseCode::Done, "the connection that it carried parts of has ended");
        },
        error = carrying.closed() => {
            // † Where the peer ends all of them the word that counts is on the first, and may come later (what it owes, say).
            if matches!(error, QuinnError::ApplicationClosed(_)) && timeout(LAST_WORDS, leading.closed()).await.is_ok() {
                return;
            }
            let Some(led) = led.upgrade().filter(|led| !led.does_without(&lane)) else { return };
            // How long nothing came is a matter of the way, whichever was silent first; and so is a peer that is another one.
            led.lose(match lane.upgrade().map_or_else(|| translate(&error), |lane| lane.translate(&error)) {
                silent @ (Closed::TimedOut | Closed::PeerRestarted) => silent,
                why => Closed::Broken(format!("another connection that carried parts of it ended: {why}")),
            });
        }
    }
}

/// quinn's words for the end of a connection in ours.
pub(super) fn translate(error: &QuinnError) -> Closed {
    match error {
        QuinnError::ApplicationClosed(close) => {
            let code = CloseCode::from_number(close.error_code.into_inner());
            Closed::ByPeer { code, reason: readable(&close.reason) }
        }
        QuinnError::TimedOut => Closed::TimedOut,
        QuinnError::Reset => Closed::PeerRestarted,
        QuinnError::LocallyClosed => Closed::Here { code: CloseCode::ShuttingDown, reason: "shutting down".to_owned() },
        other => Closed::Broken(readable(other.to_string().as_bytes())),
    }
}

impl QuicConnection {
    /// Puts an authenticated connection to work. `send` and `frames` are its control stream, past the handshake.
    pub(super) fn start(
        core: Arc<Core>,
        name: Name,
        fingerprint: crate::Fingerprint,
        send: SendStream,
        frames: FrameReader,
        endpoint: Option<quinn::Endpoint>,
    ) -> Arc<Self> {
        let peer = Peer { name, fingerprint, address: core.connection.remote_address(), carrier: core.carrier };
        let (frames_out, queue) = mpsc::channel(FRAMES_QUEUED);
        let (to_accept, parts_in) = mpsc::channel(PARTS_QUEUED);
        let room = Arc::new(Semaphore::new(FRAME_BYTES_QUEUED));
        tokio::spawn(write_frames(Arc::clone(&core), send, queue, Arc::clone(&room)));
        let weak = to_accept.downgrade();
        tokio::spawn(accept_parts(Arc::clone(&core), to_accept));
        let (frames_in, parts_in) = (Mutex::new(frames), Mutex::new(parts_in));
        Arc::new(Self { peer, core, frames_out, room, frames_in, parts_in, to_accept: weak, turn: AtomicUsize::new(0), endpoint })
    }

    /// Whether that connection, which both sides have agreed on, carries parts of this one from here on.
    pub(super) fn join(&self, lane: &Arc<Core>, endpoint: Option<quinn::Endpoint>) -> bool {
        let Some(to_accept) = self.to_accept.upgrade() else { return false };
        let joins = self.core.take_lane(lane, endpoint);
        if joins {
            tokio::spawn(accept_parts(Arc::clone(lane), to_accept));
        }
        joins
    }

    /// How many it is, with all its lanes.
    pub(super) fn connections(&self) -> usize {
        self.core.lanes().len() + 1
    }

    /// The first of them.
    pub(super) fn quinn(&self) -> quinn::Connection {
        self.core.connection.clone()
    }

    /// The lane over which the fewest parts are being written; of several one after the other.
    fn lane(&self) -> Arc<Core> {
        let lanes = self.core.lanes();
        if lanes.is_empty() || self.core.connection.close_reason().is_some() {
            return Arc::clone(&self.core);
        }
        let all = lanes.len() + 1;
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let of = |n: usize| if n == 0 { &self.core } else { &lanes[n - 1].core };
        // † One that has ended is not begun with: if nothing went over it, it is about to be done without.
        let is_there = |core: &&Arc<Core>| core.carried.load(Ordering::Relaxed) || core.connection.close_reason().is_none();
        let in_turn = (0..all).map(|n| of(first.wrapping_add(n) % all)).filter(is_there);
        let lane = in_turn.min_by_key(|core| core.writing.load(Ordering::Relaxed)).unwrap_or(&self.core);
        lane.carried.store(true, Ordering::Relaxed);
        Arc::clone(lane)
    }

    fn ended(&self) -> ConnectionError {
        ConnectionError::Closed(self.core.ended())
    }

    fn protocol_error(&self, what: &str) -> ConnectionError {
        self.core.close(CloseCode::Protocol, what);
        self.ended()
    }
}

impl Drop for QuicConnection {
    fn drop(&mut self) {
        self.core.close(CloseCode::Done, "done");
    }
}

#[async_trait]
impl Connection for QuicConnection {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    async fn send(&self, frame: Bytes) -> Result<(), ConnectionError> {
        check_length(&frame)?;
        let room = Arc::clone(&self.room).acquire_many_owned(room_of(&frame)).await.map_err(|_| self.ended())?;
        self.frames_out.send((frame, room)).await.map_err(|_| self.ended())
    }

    fn try_send(&self, frame: Bytes) -> Result<(), TrySendError> {
        check_length(&frame)?;
        let room = match Arc::clone(&self.room).try_acquire_many_owned(room_of(&frame)) {
            Ok(room) => room,
            Err(TryAcquireError::NoPermits) => return Err(TrySendError::Full(frame)),
            Err(TryAcquireError::Closed) => return Err(self.ended().into()),
        };
        self.frames_out.try_send((frame, room)).map_err(|error| match error {
            mpsc::error::TrySendError::Full((frame, _)) => TrySendError::Full(frame),
            mpsc::error::TrySendError::Closed(_) => self.ended().into(),
        })
    }

    async fn recv(&self) -> Result<Bytes, ConnectionError> {
        match self.frames_in.lock().await.next(FRAME_BYTES_MAX).await {
            Ok(frame) => Ok(frame),
            Err(FrameError::TooLong(FrameTooLong { bytes, max })) => {
                Err(self.protocol_error(&format!("a control frame of {bytes} bytes is longer than {max}")))
            }
            Err(FrameError::Torn) => Err(self.protocol_error("the control stream ended inside a frame")),
            Err(FrameError::Ended) => Err(self.protocol_error("the control stream ended")),
            Err(FrameError::Lost(error)) => Err(self.core.translate(&error).into()),
        }
    }

    async fn open_part(&self, header: Bytes) -> Result<Box<dyn PartSender>, ConnectionError> {
        let (bytes, max) = (header.len(), HEADER_BYTES_MAX);
        if bytes > max {
            return Err(ConnectionError::HeaderTooLong { bytes, max });
        }
        let core = self.lane();
        core.writing.fetch_add(1, Ordering::Relaxed);
        let mut part = QuicPartSender { core, stream: None };
        let opened = part.core.connection.open_uni().await;
        match opened {
            Ok(stream) => part.stream = Some(stream),
            Err(error) => return Err(part.core.translate_all(&error).await.into()),
        }
        let length = u16::try_from(bytes).expect("checked against the limit");
        let mut prefix = BytesMut::with_capacity(2 + bytes);
        prefix.put_u16_le(length);
        prefix.put(header);
        match part.write(prefix.freeze()).await {
            // A receiver that stops a part before its header is read has closed or is about to.
            Ok(()) | Err(PartError::Stopped | PartError::Reset) => Ok(Box::new(part)),
            Err(PartError::Connection(error)) => Err(error),
        }
    }

    async fn accept_part(&self) -> Result<IncomingPart, ConnectionError> {
        let part = self.parts_in.lock().await.recv().await;
        part.ok_or_else(|| self.ended())
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.core.close(code, reason);
    }

    async fn closed(&self) -> Closed {
        self.core.closed().await
    }

    async fn sent(&self) {
        self.core.connection.closed().await;
        // After that nothing else is sent; and where it was not said here nothing is.
        while let Some(before) = self.core.closed_after.get()
            && self.core.connection.stats().udp_tx.datagrams <= *before
        {
            sleep(SENT_LOOK).await;
        }
        if self.core.carrier != Carrier::Udp {
            sleep(TUNNELLED).await; // what quinn has sent lies in the tunnel, whose task seals and writes it
        }
    }

    async fn told(&self) {
        self.core.connection.closed().await;
        if let Some(endpoint) = &self.endpoint {
            endpoint.wait_idle().await;
        }
    }

    fn close_reason(&self) -> Option<Closed> {
        self.core.connection.close_reason().map(|error| self.core.translate(&error))
    }

    fn statistics(&self) -> Statistics {
        let of = |core: &Core| {
            let s = core.connection.stats();
            Statistics {
                connections: 1,
                sent_bytes: s.udp_tx.bytes,
                received_bytes: s.udp_rx.bytes,
                sent_packets: s.path.sent_packets,
                lost_packets: s.path.lost_packets,
                rtt: s.path.rtt,
                mtu: s.path.current_mtu,
                congestion_window: s.path.cwnd,
            }
        };
        self.core.lanes().iter().fold(of(&self.core), |all, lane| {
            let one = of(&lane.core);
            Statistics {
                connections: all.connections + 1,
                sent_bytes: all.sent_bytes + one.sent_bytes,
                received_bytes: all.received_bytes + one.received_bytes,
                sent_packets: all.sent_packets + one.sent_packets,
                lost_packets: all.lost_packets + one.lost_packets,
                congestion_window: all.congestion_window + one.congestion_window,
                ..all
            }
        })
    }
}

fn room_of(frame: &Bytes) -> u32 {
    u32::try_from(frame.len()).expect("checked against the limit")
}

fn check_length(frame: &Bytes) -> Result<(), ConnectionError> {
    let (bytes, max) = (frame.len(), FRAME_BYTES_MAX);
    if bytes > max { Err(ConnectionError::FrameTooLong { bytes, max }) } else { Ok(()) }
}

/// Writes frames until the connection ends or its last handle is dropped.
async fn write_frames(core: Arc<Core>, mut stream: SendStream, mut queue: mpsc::Receiver<Queued>, room: Arc<Semaphore>) {
    write_queued(&core, &mut stream, &mut queue).await;
    // Who waits for room hears that there will be none.
    room.close();
}

async fn write_queued(core: &Core, stream: &mut SendStream, queue: &mut mpsc::Receiver<Queued>) {
    // Acknowledgements and credits go before bulk.
    let _ = stream.set_priority(1);
    loop {
        let frame = tokio::select! {
            frame = queue.recv() => frame,
            _ = core.connection.closed() => return,
        };
        let Some((frame, _room)) = frame else { return };
        match write_frame(stream, frame).await {
            Ok(()) => {}
            Err(WriteError::ConnectionLost(_)) => return,
            Err(_) => return core.close(CloseCode::Protocol, "the control stream was stopped"),
        }
    }
}

/// Accepts part streams until the connection ends. The peer's limit of open streams bounds the readers.
async fn accept_parts(core: Arc<Core>, to_accept: mpsc::Sender<IncomingPart>) {
    while let Ok(stream) = core.connection.accept_uni().await {
        core.carries();
        let (core, to_accept) = (Arc::clone(&core), to_accept.clone());
        tokio::spawn(async move {
            let mut body = QuicPartReceiver { core, stream, finished: false };
            match body.read_header().await {
                Ok(header) => {
                    let _ = to_accept.send(IncomingPart { header, body: Box::new(body) }).await;
                }
                Err(HeaderError::Gone) => {}
                Err(HeaderError::Bad) => body.core.close(CloseCode::Protocol, "a part header is cut or too long"),
            }
        });
    }
}

enum HeaderError {
    Gone,
    Bad,
}

#[derive(Debug)]
struct QuicPartReceiver {
    core: Arc<Core>,
    stream: RecvStream,
    finished: bool,
}

impl QuicPartReceiver {
    async fn read_header(&mut self) -> Result<Bytes, HeaderError> {
        let mut prefix = [0; 2];
        self.read_exact(&mut prefix).await?;
        let length = usize::from(u16::from_le_bytes(prefix));
        if length > HEADER_BYTES_MAX {
            return Err(HeaderError::Bad);
        }
        let mut header = vec![0; length];
        self.read_exact(&mut header).await?;
        Ok(header.into())
    }

    async fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), HeaderError> {
        self.stream.read_exact(buffer).await.map_err(|error| match error {
            quinn::ReadExactError::FinishedEarly(_) => HeaderError::Bad,
            quinn::ReadExactError::ReadError(_) => HeaderError::Gone,
        })
    }
}

#[async_trait]
impl PartReceiver for QuicPartReceiver {
    async fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, PartError> {
        if self.finished {
            return Ok(None);
        }
        match self.stream.read_chunk(bytes_max.max(1), true).await {
            Ok(Some(chunk)) => {
                self.core.was_read(chunk.bytes.len());
                Ok(Some(chunk.bytes))
            }
            Ok(None) => {
                self.finished = true;
                Ok(None)
            }
            Err(ReadError::ConnectionLost(error)) => Err(self.core.translate(&error).into()),
            Err(_) => Err(PartError::Reset),
        }
    }
}

#[derive(Debug)]
struct QuicPartSender {
    core: Arc<Core>,
    /// Present while the part is open.
    stream: Option<SendStream>,
}

impl QuicPartSender {
    fn gone(&self) -> PartError {
        match self.core.connection.close_reason() {
            Some(error) => self.core.translate(&error).into(),
            None => PartError::Stopped,
        }
    }
}

#[async_trait]
impl PartSender for QuicPartSender {
    async fn write(&mut self, chunk: Bytes) -> Result<(), PartError> {
        let Some(stream) = &mut self.stream else { return Err(PartError::Stopped) };
        if let Some(closed) = self.core.ended_with() {
            return Err(closed.into());
        }
        match stream.write_chunk(chunk).await {
            Ok(()) => Ok(()),
            Err(WriteError::ConnectionLost(error)) => Err(self.core.translate_all(&error).await.into()),
            Err(_) => Err(PartError::Stopped),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<(), PartError> {
        let finished = self.stream.take().is_some_and(|mut stream| stream.finish().is_ok());
        if let Some(closed) = self.core.ended_with() {
            return Err(closed.into());
        }
        if finished && self.core.connection.close_reason().is_none() { Ok(()) } else { Err(self.gone()) }
    }

    fn reset(self: Box<Self>) {}
}

impl Drop for QuicPartSender {
    fn drop(&mut self) {
        // quinn would finish the stream, and a torn body would look whole.
        if let Some(mut stream) = self.stream.take() {
            let _ = stream.reset(GIVEN_UP);
        }
        self.core.writing.fetch_sub(1, Ordering::Relaxed);
    }
}
