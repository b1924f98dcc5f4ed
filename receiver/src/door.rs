//! Connections of sources: who comes, for which group, and the way of frames and parts between the two.
//!
//! Invariants: a group's thread is never made to wait for a source (answers queue here, bounded; a source that does not read
//! them is closed); a source's messages wait in its own group's mailbox only, so it can hold up nobody else; a source that
//! sends more than it was granted loses its connection, and takes nothing that others were granted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside_control::source::Carrier;
use farside_region::Name;
use farside_replication::target::SessionId;
use farside_store::GroupNames;
use farside_transport::{CloseCode, Closed, Connection, LANES_MAX};
use farside_wire::{
    DecodeError, Features, ReceiverMessage, Refusal, RefusalCode, SourceMessage, TEXT_BYTES_MAX, decode_payload, encode_payload,
};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::timeout;

use crate::cohort;
use crate::failover::{Lost, Standing, left_behind};
use crate::group::{GroupHandle, Mail, gone_for_good};
use crate::landing;
use crate::process::Receiver;
use crate::pull;

/// Time for the greeting after the connection stands.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a source to take what was said before the connection is closed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time for it to take what was queued before that.
const DRAIN: Duration = Duration::from_secs(5);
/// Answers that may wait for a source, by number and by size.
const ANSWERS_MAX: usize = 4096;
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Answers that may wait for all sources. When it is more, those that have more than a share must go.
const ANSWER_BYTES_ALL_MAX: usize = 64 << 20;
const ANSWER_BYTES_SHARE: usize = 2 << 20;

static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// A part ends with the region in which its credit ends, so one of each volume may go so far beyond it: a region that no
/// compression shortens, a frame's head for each of its granules, and the footer.
const OVERRUN_BYTES: u64 = (4 << 20) + 1024 * 64 + farside_layer::TAIL_BYTES_MAX as u64;

/// What a source may send, and what came of it.
///
/// Invariant: no more of its parts is written than it was granted, but for [`OVERRUN_BYTES`] of each volume, whatever it sends
/// at once.
#[derive(Debug, Default)]
struct Allowance {
    granted_bytes: AtomicU64,
    volumes: AtomicU64,
    /// Of parts that landed or were not wanted, and of those on their way.
    arrived_bytes: AtomicU64,
}

/// The bytes of one part that came so far. They count for ever once it [is over](Arriving::keep); a part that was given up took
/// none.
#[derive(Debug)]
pub(crate) struct Arriving<'a> {
    allowance: &'a Allowance,
    bytes: u64,
}

impl Arriving<'_> {
    /// So many more came. False: more than was granted.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        self.bytes += bytes;
        let Allowance { granted_bytes, volumes, arrived_bytes } = self.allowance;
        let arrived = arrived_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let overrun = volumes.load(Ordering::Relaxed).max(1).saturating_mul(OVERRUN_BYTES);
        arrived <= granted_bytes.load(Ordering::Relaxed).saturating_add(overrun)
    }

    /// The source counts it as sent.
    pub(crate) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.allowance.arrived_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One connection, as its group sees it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    connection: Arc<dyn Connection>,
    outbox: Mutex<Option<mpsc::Sender<Bytes>>>,
    queued: Queued,
    /// It was closed; the writer has little time left.
    closing: Arc<Notify>,
    last_words: Arc<Mutex<(CloseCode, String)>>,
    /// Whether parts may still land. A lander holds it for reading while it finishes, [`Session::stop`] for writing.
    landing: RwLock<bool>,
    /// Parts that may be read.
    pub(crate) landers: Semaphore,
    /// So many for each connection that carries it.
    landers_each: usize,
    /// Of so many there are permits.
    carried_by: AtomicUsize,
    /// Of these, such as are read to their end and made durable.
    pub(crate) finishing: Semaphore,
    allowance: Allowance,
    heard: Mutex<Instant>,
}

/// Bytes of answers that wait: of one source, and of all.
#[derive(Clone, Debug)]
struct Queued {
    mine: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Queued {
    /// Whether there is room for so much more. It counts as queued in any case.
    fn add(&self, bytes: usize) -> bool {
        let mine = self.mine.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        mine <= ANSWER_BYTES_MAX && (all <= ANSWER_BYTES_ALL_MAX || mine <= ANSWER_BYTES_SHARE)
    }

    fn remove(&self, bytes: usize) {
        self.mine.fetch_sub(bytes, Ordering::Relaxed);
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Session {
    fn new(connection: Arc<dyn Connection>, landers: u32, all_queued: &Arc<AtomicUsize>) -> Arc<Self> {
        let (outbox, queue) = mpsc::channel(ANSWERS_MAX);
        let queued = Queued { mine: Arc::default(), all: Arc::clone(all_queued) };
        let session = Arc::new(Self {
            id: SessionId(SESSIONS.fetch_add(1, Ordering::Relaxed) + 1),
            connection: Arc::clone(&connection),
            outbox: Mutex::new(Some(outbox)),
            queued: queued.clone(),
            closing: Arc::default(),
            last_words: Arc::new(Mutex::new((CloseCode::Done, "done".to_owned()))),
            landing: RwLock::new(true),
            landers: Semaphore::new(landers as usize),
            landers_each: landers as usize,
            carried_by: AtomicUsize::new(1),
            finishing: Semaphore::new(landers as usize),
            allowance: Allowance::default(),
            heard: Mutex::new(Instant::now()),
        });
        tokio::spawn(write(connection, queue, queued, Arc::clone(&session.closing), Arc::clone(&session.last_words)));
        session
    }

    /// † Streams are allowed by connection, of which it may have some: who may come must find a permit, or those that wait unread fill the windows
    /// that those with one need. What is read to its end fills none, and no stream counts it any more: that has `finishing`.
    pub(crate) fn permits_all_streams(&self) {
        let connections = self.connection.statistics().connections as usize;
        let before = self.carried_by.fetch_max(connections, Ordering::Relaxed);
        self.landers.add_permits(connections.saturating_sub(before).min(LANES_MAX) * self.landers_each);
    }

    /// Queues an answer. Never waits.
    pub(crate) fn send(&self, message: &ReceiverMessage) {
        let payload = match encode_payload(message) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, "an answer cannot be encoded");
                return self.connection.close(CloseCode::Internal, "an answer cannot be encoded");
            }
        };
        let length = payload.len();
        let outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(outbox) = outbox else { return };
        if !self.queued.add(length) || outbox.try_send(payload).is_err() {
            self.queued.remove(length);
            self.connection.close(CloseCode::Overloaded, "this source does not read its answers");
        }
    }

    /// Stops landing at once, says what is queued, and closes. Returns when no part of this session can land any more.
    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.stop();
        *self.last_words.lock().unwrap_or_else(PoisonError::into_inner) = (code, reason.to_owned());
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.closing.notify_one();
    }

    /// [`Session::close`] for tasks, which must not wait for a disk.
    pub(crate) fn close_soon(self: &Arc<Self>, code: CloseCode, reason: &str) {
        let (session, reason) = (Arc::clone(self), reason.to_owned());
        tokio::task::spawn_blocking(move || session.close(code, &reason));
    }

    /// Returns when no part of this session can land any more. Blocking: a part that is being synced is waited for.
    pub(crate) fn stop(&self) {
        *self.landing.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Does `finish` while [`Session::stop`] waits; `None` if it was stopped.
    pub(crate) fn while_landing<T>(&self, finish: impl FnOnce() -> T) -> Option<T> {
        let landing = self.landing.read().unwrap_or_else(PoisonError::into_inner);
        landing.then(finish)
    }

    /// It may send so much, in sum; before it is told.
    pub(crate) fn grant(&self, granted_bytes: u64) {
        self.allowance.granted_bytes.store(granted_bytes, Ordering::Relaxed);
    }

    /// It may send parts of so many volumes at once.
    pub(crate) fn sends_of(&self, volumes: u64) {
        self.allowance.volumes.store(volumes, Ordering::Relaxed);
    }

    /// A part of it begins.
    pub(crate) fn arriving(&self) -> Arriving<'_> {
        Arriving { allowance: &self.allowance, bytes: 0 }
    }

    /// Who it is, as it was paired.
    pub(crate) fn peer(&self) -> Name {
        self.connection.peer().name.clone()
    }

    pub(crate) fn address(&self) -> String {
        self.connection.peer().address.to_string()
    }

    pub(crate) fn carrier(&self) -> Carrier {
        match self.connection.peer().carrier {
            farside_transport::Carrier::Udp => Carrier::Udp,
            farside_transport::Carrier::Tcp(_) => Carrier::Tcp,
        }
    }

    /// When the source last said something.
    pub(crate) fn heard(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hears(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Writes answers until the queue is closed; then closes the connection with the last words. A source that does not read has
/// only so long to hear them.
async fn write(
    connection: Arc<dyn Connection>,
    mut queue: mpsc::Receiver<Bytes>,
    queued: Queued,
    closing: Arc<Notify>,
    last_words: Arc<Mutex<(CloseCode, String)>>,
) {
    let drain = async {
        let mut said = false;
        while let Some(payload) = queue.recv().await {
            queued.remove(payload.len());
            said = true;
            if connection.send(payload).await.is_err() {
                break;
            }
        }
        if said {
            let _ = timeout(LAST_WORDS, connection.closed()).await;
        }
    };
    let patience = async {
        closing.notified().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = drain => {}
        () = patience => {}
    }
    let (code, reason) = last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
    connection.close(code, &reason);
    queue.close();
    while let Some(payload) = queue.recv().await {
        queued.remove(payload.len());
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve(receiver: Arc<Receiver>, connection: Arc<dyn Connection>) {
    let session = Session::new(Arc::clone(&connection), receiver.parts_per_connection, &receiver.answers_queued);
    let source = connection.peer().name.clone();
    let group = match greet(&receiver, &session, &source).await {
        Ok((group, SourceMessage::Hello(hello))) if hello.features.has(Features::PULL) => {
            return pull::serve(receiver, connection, group, hello).await;
        }
        Ok((group, SourceMessage::Hello(hello))) if hello.features.has(Features::COHORT) => {
            return cohort::serve(receiver, connection, group, hello).await;
        }
        Ok((group, hello)) => {
            let _ = group.tell(Mail::Connected { session: Arc::clone(&session) }).await;
            let _ = group.tell(Mail::Message { session: session.id, message: Box::new(hello), arrived: Instant::now() }).await;
            group
        }
        Err((code, text)) => {
            tracing::warn!(%source, address = %session.address(), %text, "refused a connection");
            session.send(&ReceiverMessage::Refusal(refusal(code, &text)));
            return session.close_soon(CloseCode::Refused, &text);
        }
    };
    tokio::select! {
        () = carry_frames(&session, &group) => {}
        () = accept_parts(&receiver, &session, &group) => {}
    }
    let ended = connection.closed().await;
    let settled = matches!(ended, Closed::ByPeer { code: CloseCode::Settled, .. });
    let sent_away = matches!(ended, Closed::Here { .. });
    let stopping = Arc::clone(&session);
    let _ = tokio::task::spawn_blocking(move || stopping.stop()).await;
    tracing::info!(%source, group = %group.names(), why = %ended, "the connection ended");
    let _ = group.tell(Mail::Closed { session: session.id, settled, sent_away }).await;
}

/// Reads the first message and finds the group it names.
async fn greet(
    receiver: &Arc<Receiver>,
    session: &Arc<Session>,
    source: &Name,
) -> Result<(GroupHandle, SourceMessage), (RefusalCode, String)> {
    let protocol = |text: String| (RefusalCode::Protocol, text);
    let frame = timeout(GREETING_TIMEOUT, session.connection.recv()).await;
    let frame = frame.map_err(|_| protocol("no greeting came".to_owned()))?.map_err(|e| protocol(e.to_string()))?;
    let message: SourceMessage = decode_payload(&frame).map_err(|error| match error {
        DecodeError::Version { .. } => (RefusalCode::Version, error.to_string()),
        other => protocol(other.to_string()),
    })?;
    let SourceMessage::Hello(hello) = &message else { return Err(protocol("the first message is not a greeting".to_owned())) };
    let names = GroupNames::new(hello.source.clone(), hello.group.clone());
    if hello.source != *source && !receiver.failovers.stands_in(&names, source, None) {
        let stands = receiver.failovers.stands_by_ledger(receiver, &names).await;
        return Err((RefusalCode::Unknown, stands_in_for_nobody(&names, source, stands)));
    }
    if hello.source == *source
        && let Some(winner) = receiver.failovers.committed(&names)
    {
        return Err((RefusalCode::Unknown, gone_for_good(&names, &winner)));
    }
    let (roster, receiver) = (Arc::clone(&receiver.roster), Arc::clone(receiver));
    let found = tokio::task::spawn_blocking(move || roster.group(&receiver, &names)).await;
    match found {
        Ok(Ok(group)) => Ok((group, message)),
        Ok(Err(error)) => Err((RefusalCode::Session, error.to_string())),
        Err(error) => Err((RefusalCode::Store, error.to_string())),
    }
}

/// What a host is told that comes in the place of another, and may not. `failover`: how it stands; or what is known of one that nobody noted here, if that
/// could be found out.
///
/// † Whoever is told to name it with `--stand-in` where nothing was failed over, since the source has its history back, say, begins another failover.
fn stands_in_for_nobody(names: &GroupNames, peer: &Name, failover: Result<Standing, Result<Option<Lost>, String>>) -> String {
    let source = &names.source;
    let over = || {
        format!(
            "{names} is not failed over: its source has its history back, or never lost it; on {peer}: `farside volume remove` of what it has in group {}, \
             then leave `stand_in_for` out of its [[group]]",
            names.group
        )
    };
    let way_out = match failover {
        Err(Ok(lost)) => lost.and_then(|lost| lost.lets_stand_in(names, peer)).unwrap_or_else(over),
        Err(Err(why)) => format!("whether {names} is failed over is not known yet ({why}): it is asked again by itself"),
        Ok(Standing::Fencing) => {
            "its failover has fenced nobody yet: it is let in when that is done; on the gateway: farside failover --list"
                .to_owned()
        }
        // † It may be let in once that one is gone, and is told nothing of removing what it has before.
        Ok(Standing::LeftBehind(highest)) => {
            format!("on the gateway, before anything else: {}", left_behind(names, highest).message)
        }
        Ok(Standing::Stands) => format!("on the gateway, if it has the copy now: farside failover {names} --stand-in {peer}"),
    };
    format!("this certificate is paired as `{peer}`, not as `{source}`, and no failover lets it stand in for that one: {way_out}")
}

/// Frames wait for their group as they came: what is in them is read by the group's thread, one at a time.
async fn carry_frames(session: &Arc<Session>, group: &GroupHandle) {
    while let Ok(frame) = session.connection.recv().await {
        session.hears();
        if !group.frame(session.id, frame, session.heard()).await {
            return session.close_soon(CloseCode::ShuttingDown, "the receiver is stopping");
        }
    }
}

async fn accept_parts(receiver: &Arc<Receiver>, session: &Arc<Session>, group: &GroupHandle) {
    while let Ok(part) = session.connection.accept_part().await {
        session.hears();
        // The limit of open streams bounds these tasks.
        tokio::spawn(landing::land(Arc::clone(receiver), Arc::clone(session), group.clone(), part));
    }
}

/// A refusal for a person, cut to what a message may hold.
pub(crate) fn refusal(code: RefusalCode, text: &str) -> Refusal {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Refusal { code, volume: None, text: text[..end].to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a failback its farsided is started again, as it was configured.
    #[test]
    fn a_stand_in_of_a_source_that_is_back_is_not_told_to_begin_another_failover() {
        let names = GroupNames::new("web1".parse().expect("a name"), "db".parse().expect("a name"));
        let told = |failover| stands_in_for_nobody(&names, &"web2".parse().expect("a name"), failover);
        let (over, begun, stands) = (told(Err(Ok(None))), told(Ok(Standing::Fencing)), told(Ok(Standing::Stands)));
        assert!(!over.contains("--stand-in") && over.contains("on web2: `farside volume remove`"), "{over}");
        assert!(!begun.contains("--stand-in") && begun.contains("fenced nobody yet"), "{begun}");
        assert!(stands.contains("farside failover web1/db --stand-in web2"), "{stands}");
        let unknown = told(Err(Err("web1/db is not open yet".to_owned())));
        assert!(!unknown.contains("remove") && unknown.contains("is not known yet"), "{unknown}");
    }
}
