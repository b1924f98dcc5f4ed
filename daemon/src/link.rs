//! A group's connection to the receiver: connects for ever, carries messages both ways, tells the control thread.
//!
//! It understands nothing of the messages but their encoding. Connections are numbered upwards over the whole process.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use farside_replication::source::Ended;
use farside_transport::{CloseCode, Closed, Connection, Connector, ConnectorState, Dial, Pacer};
use farside_wire::ReceiverMessage;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::group::{Inbox, Note};

static NUMBER: AtomicU64 = AtomicU64::new(0);
/// Messages that may wait for the control thread before the receiver is made to wait.
pub(crate) const WAITING_MAX: usize = 4096;

/// A connection as the control thread holds it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) number: u64,
    pub(crate) connection: Arc<dyn Connection>,
    outbox: mpsc::UnboundedSender<Bytes>,
}

impl Link {
    /// Queues a message; what the protocol allows to be outstanding bounds the queue.
    pub(crate) fn send(&self, payload: Bytes) {
        let _ = self.outbox.send(payload); // a closed connection is reported on its own way
    }
}

/// Starts the task; the watch follows what the connector is doing.
pub(crate) fn start(
    runtime: &tokio::runtime::Handle,
    dial: Arc<dyn Dial>,
    pacer: Arc<Pacer>,
    inbox: Inbox,
) -> (tokio::task::JoinHandle<()>, watch::Receiver<ConnectorState>) {
    let connector = Connector::new(dial);
    let state = connector.state();
    (runtime.spawn(run(connector, pacer, inbox)), state)
}

async fn run(mut connector: Connector, pacer: Arc<Pacer>, inbox: Inbox) {
    loop {
        let connection = connector.next().await;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        let (outbox, outgoing) = mpsc::unbounded_channel();
        inbox.send(Note::Connected(Link { number, connection: connection.clone(), outbox }));
        let writer = tokio::spawn(write(connection.clone(), pacer.clone(), outgoing));
        let mut reading = pin!(read(&connection, number, &inbox));
        tokio::select! {
            biased;
            () = &mut reading => {}
            () = connector.switch() => reading.await,
        }
        writer.abort();
        inbox.send(Note::Disconnected(number, tells_of_the_line(connection.close_reason().as_ref())));
    }
}

/// What one side says, and a receiver that was started anew, tell nothing of it.
fn tells_of_the_line(why: Option<&Closed>) -> Ended {
    match why {
        Some(Closed::TimedOut | Closed::Broken(_)) => Ended::Broken,
        _ => Ended::Closed,
    }
}

async fn write(connection: Arc<dyn Connection>, pacer: Arc<Pacer>, mut outgoing: mpsc::UnboundedReceiver<Bytes>) {
    while let Some(payload) = outgoing.recv().await {
        // Counted, and never held up: the limit is for parts.
        pacer.charge(payload.len());
        if let Err(error) = connection.send(payload).await {
            connection.close(CloseCode::Internal, &error.to_string());
            return;
        }
    }
}

async fn read(connection: &Arc<dyn Connection>, number: u64, inbox: &Inbox) {
    while let Ok(frame) = connection.recv().await {
        match farside_wire::decode_payload::<ReceiverMessage>(&frame) {
            Ok(message) => inbox.send(Note::Message(number, Box::new(message))),
            Err(error) => {
                warn!(%error, "the receiver sent something that is not a message");
                connection.close(CloseCode::Protocol, &error.to_string());
                return;
            }
        }
        while inbox.len() > WAITING_MAX {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_a_stop_and_a_restart_tell_nothing_of_the_line() {
        let (code, reason) = (CloseCode::ShuttingDown, "stopping".to_owned());
        let by_somebody = [Closed::Here { code, reason: reason.clone() }, Closed::ByPeer { code, reason }, Closed::PeerRestarted];
        assert!(by_somebody.iter().all(|why| tells_of_the_line(Some(why)) == Ended::Closed));
        let by_the_line = [Closed::TimedOut, Closed::Broken("reset by a gateway on the way".to_owned())];
        assert!(by_the_line.iter().all(|why| tells_of_the_line(Some(why)) == Ended::Broken));
    }
}
