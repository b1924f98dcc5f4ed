//! The connection on which a group is cut as one with groups of other hosts, and the timer that ends its holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside_blockio::process::Priority;
use farside_shim::{Group, HoldId};
use farside_transport::{CloseCode, Connection, Dial};
use farside_wire::{
    CohortSay, Features, InstanceId, ReceiverMessage, SourceHello, SourceMessage, VersionRange, decode_payload, encode_payload,
};
use tokio::sync::mpsc;

use crate::channel::{Sender, channel};
use crate::group::{Inbox, Note};
use crate::link::WAITING_MAX;

/// For the greeting.
const PATIENCE: Duration = Duration::from_secs(20);
/// Answers that may wait for a gateway that does not read.
const ANSWERS_MAX: usize = 64;
/// Numbers connections, over the whole process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Ends holds when their time is over, and does nothing else: nobody keeps it from that.
#[derive(Debug)]
pub(crate) struct HoldTimer(Sender<(HoldId, Instant)>);

impl HoldTimer {
    /// For one group. It ends when this is dropped, after the hold that it waits for.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(group: Arc<Group>) -> std::io::Result<Self> {
        let (holds, held) = channel::<(HoldId, Instant)>();
        std::thread::Builder::new().name("hold-timer".to_owned()).spawn(move || {
            // Host writes wait for it.
            if let Err(error) = Priority::Urgent.set() {
                tracing::debug!(%error, "the timer of holds has the priority of any other thread");
            }
            for (hold, until) in held.iter() {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
                group.let_go(hold);
            }
        })?;
        Ok(Self(holds))
    }

    /// Ends that hold at that time. False: it cannot.
    pub(crate) fn ends(&self, hold: HoldId, until: Instant) -> bool {
        self.0.send((hold, until)).is_ok()
    }
}

/// A connection, or the attempt to have one.
#[derive(Debug)]
pub(crate) struct CohortLink {
    pub(crate) number: u64,
    outbox: mpsc::Sender<Bytes>,
    inbox: Inbox,
    task: tokio::task::AbortHandle,
}

impl Drop for CohortLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Closed with the task.
struct Closes(Arc<dyn Connection>);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.close(CloseCode::Done, "done");
    }
}

impl CohortLink {
    /// Greets as `hello` says; [`Note::CohortUp`] and [`Note::CohortEnded`] follow.
    pub(crate) fn start(
        runtime: &tokio::runtime::Handle,
        dial: Arc<dyn Dial>,
        (source, group, instance): (farside_region::Name, farside_region::Name, InstanceId),
        inbox: Inbox,
    ) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        let (outbox, outgoing) = mpsc::channel(ANSWERS_MAX);
        let (versions, features) = (VersionRange::OURS, Features::COHORT);
        let hello = SourceHello { versions, features, instance, connection: number, source, group };
        let notes = inbox.clone();
        let task = runtime.spawn(async move {
            let why = converse(&*dial, hello, number, &notes, outgoing).await;
            notes.send(Note::CohortEnded(number, why));
        });
        Self { number, outbox, inbox, task: task.abort_handle() }
    }

    /// A receiver that asks and does not read the answers is let go.
    pub(crate) fn say(&self, say: CohortSay) {
        let payload = encode_payload(&SourceMessage::Cohort(say)).expect("an answer fits a frame");
        // The end of the connection is told on its own way.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.outbox.try_send(payload) {
            self.task.abort();
            self.inbox.send(Note::CohortEnded(self.number, "the receiver asks, and does not read what is answered".to_owned()));
        }
    }
}

/// Until it ends, and why.
async fn converse(
    dial: &dyn Dial,
    hello: SourceHello,
    number: u64,
    inbox: &Inbox,
    mut outgoing: mpsc::Receiver<Bytes>,
) -> String {
    let connection = match dial.dial().await {
        Ok(connection) => Closes(connection),
        Err(error) => return error.to_string(),
    };
    let connection = &connection.0;
    let payload = encode_payload(&SourceMessage::Hello(hello)).expect("a greeting fits a frame");
    let greeted = tokio::time::timeout(PATIENCE, async {
        connection.send(payload).await?;
        connection.recv().await
    });
    let frame = match greeted.await {
        Ok(Ok(frame)) => frame,
        Ok(Err(error)) => return error.to_string(),
        Err(_) => return "the receiver does not greet".to_owned(),
    };
    match decode_payload::<ReceiverMessage>(&frame) {
        Ok(ReceiverMessage::Hello(hello)) if hello.features.has(Features::COHORT) => {}
        Ok(ReceiverMessage::Refusal(refusal)) => return refusal.text,
        Ok(_) => return "the receiver does not know cohorts".to_owned(),
        Err(error) => return error.to_string(),
    }
    inbox.send(Note::CohortUp(number));
    let reads = async {
        loop {
            let frame = match connection.recv().await {
                Ok(frame) => frame,
                Err(error) => return error.to_string(),
            };
            match decode_payload::<ReceiverMessage>(&frame) {
                Ok(ReceiverMessage::Cohort(ask)) => inbox.send(Note::CohortAsks(number, ask)),
                Ok(ReceiverMessage::Refusal(refusal)) => return refusal.text,
                Ok(_) => return "the receiver sent what has no place on a connection of a cohort".to_owned(),
                Err(error) => return error.to_string(),
            }
            while inbox.len() > WAITING_MAX {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let writes = async {
        while let Some(payload) = outgoing.recv().await {
            if let Err(error) = connection.send(payload).await {
                return error.to_string();
            }
        }
        "it is not wanted any more".to_owned()
    };
    tokio::select! {
        why = reads => why,
        why = writes => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_receiver_that_asks_and_does_not_read_is_let_go() {
        let (inbox, notes) = Inbox::pair();
        let (outbox, waiting) = mpsc::channel(ANSWERS_MAX);
        let task = tokio::spawn(std::future::pending::<()>());
        let link = CohortLink { number: 7, outbox, inbox, task: task.abort_handle() };
        for _ in 0..=ANSWERS_MAX {
            assert!(notes.is_empty());
            link.say(CohortSay::Not { cut: [1; 16], why: "no".to_owned() });
        }
        assert_eq!(waiting.len(), ANSWERS_MAX);
        assert!(matches!(notes.try_recv(), Ok(Note::CohortEnded(7, _))));
        assert!(task.await.expect_err("it was given up").is_cancelled());
    }

    #[test]
    fn a_hold_ends_by_itself() {
        let group = Group::new(&farside_shim::Limits::DEFAULT, 4096);
        let timer = HoldTimer::start(group.clone()).expect("a thread");
        let first = group.hold().expect("free");
        assert_eq!(group.hold(), None, "one at a time");
        assert!(timer.ends(first, Instant::now()));
        // One that was ended before is not ended again, and the next one not by its time.
        let second = std::iter::repeat_with(|| group.hold()).find_map(|hold| {
            std::thread::yield_now();
            hold
        });
        let second = second.expect("the first one ended");
        assert!(!group.let_go(first), "it is over");
        assert!(group.let_go(second), "it stood");
    }
}
