//! One part's way: from its stream, verified as it comes, into the store's landing, and a word to the group.
//!
//! Memory: a part that has begun holds at most [`LANDER_BYTES`] of the receive budget, whatever its source does; a source that
//! stops sending while others wait for the budget is closed.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use farside_layer::PART_BYTES_MAX;
use farside_store::{PartLander, StoreError};
use farside_transport::{CloseCode, IncomingPart, PartError, PartReceiver};
use farside_wire::{PART_HEADER_BYTES, PartHeader};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::door::Session;
use crate::group::{BeginPart, GroupHandle, Mail, PartOutcome};
use crate::process::Receiver;

/// What a part on its way in takes of the receive budget: a batch, and what the verifier keeps of an unfinished frame.
pub(crate) const LANDER_BYTES: u32 = 1 << 20;
/// Bytes verified and written at once.
const BATCH_BYTES: usize = 256 << 10;
/// A part that brings nothing for so long gives way when others wait.
const STALLED: Duration = Duration::from_secs(30);

/// Lands a part, or says why not.
pub(crate) async fn land(
    receiver: Arc<Receiver>,
    session: Arc<Session>,
    group: GroupHandle,
    parts_of_source: Arc<Semaphore>,
    part: IncomingPart,
) {
    let header: Option<&[u8; PART_HEADER_BYTES]> = part.header[..].try_into().ok();
    let header = match header.map(PartHeader::decode) {
        Some(Ok(header)) => header,
        Some(Err(error)) => return session.close(CloseCode::Protocol, &error.to_string()),
        None => return session.close(CloseCode::Protocol, "a part header of the wrong length"),
    };
    let Ok(_permit) = parts_of_source.acquire_owned().await else { return };
    let _grant = receiver.budget.take(LANDER_BYTES).await;
    receiver.note_budget();
    let (reply, answer) = oneshot::channel();
    if group.tell(Mail::BeginPart { session: session.id, header, reply }).await.is_err() {
        return;
    }
    let mut body = part.body;
    let outcome = match answer.await {
        Err(_) | Ok(BeginPart::Drop) => return,
        Ok(BeginPart::Swallow) => match swallow(&receiver, &mut *body).await {
            Ok(bytes) => PartOutcome::Unwanted { bytes },
            Err(trouble) => return end(&session, trouble),
        },
        Ok(BeginPart::Failed(error)) => PartOutcome::Failed(error),
        Ok(BeginPart::Land(lander)) => match write(&receiver, &session, &mut *body, *lander).await {
            Ok(Some(entry)) => PartOutcome::Landed(entry),
            Ok(None) => return,
            Err(Trouble::Store(error)) => PartOutcome::Failed(error),
            Err(trouble) => return end(&session, trouble),
        },
    };
    let _ = group.tell(Mail::Part { session: session.id, header, outcome }).await;
}

enum Trouble {
    Store(StoreError),
    Stream(PartError),
    Stalled,
    TooLong,
}

/// A part that came to nothing.
fn end(session: &Session, trouble: Trouble) {
    match trouble {
        // The source knows, and what was written is gone.
        Trouble::Stream(error) => tracing::debug!(%error, "a part ended early"),
        Trouble::Stalled => session.close(CloseCode::Overloaded, "a part stalled while others waited"),
        Trouble::TooLong => session.close(CloseCode::Protocol, "a part is longer than a part may be"),
        Trouble::Store(error) => session.close(CloseCode::Refused, &error.to_string()),
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Reads the body to its end and writes it; `None` when the session was stopped before the end.
async fn write(
    receiver: &Receiver,
    session: &Arc<Session>,
    body: &mut dyn PartReceiver,
    mut lander: PartLander,
) -> Result<Option<farside_ledger::PartEntry>, Trouble> {
    let mut batch = BytesMut::with_capacity(BATCH_BYTES);
    loop {
        let chunk = next(receiver, body, BATCH_BYTES - batch.len()).await?;
        let last = chunk.is_none();
        batch.extend_from_slice(&chunk.unwrap_or_default());
        if batch.len() < BATCH_BYTES && !last {
            continue;
        }
        if !batch.is_empty() {
            let bytes = batch;
            (lander, batch) = blocking(move || {
                lander.write(&bytes)?;
                Ok((lander, bytes))
            })
            .await?;
            batch.clear();
        }
        if last {
            let session = Arc::clone(session);
            return Ok(blocking(move || session.while_landing(|| lander.finish()).transpose()).await?);
        }
    }
}

/// Reads a body that nobody wants; says how long it was.
async fn swallow(receiver: &Receiver, body: &mut dyn PartReceiver) -> Result<u64, Trouble> {
    let mut bytes = 0_u64;
    while let Some(chunk) = next(receiver, body, BATCH_BYTES).await? {
        bytes += chunk.len() as u64;
        if bytes > PART_BYTES_MAX {
            return Err(Trouble::TooLong);
        }
    }
    Ok(bytes)
}

/// The next chunk; an error when the source stalls while others wait.
async fn next(receiver: &Receiver, body: &mut dyn PartReceiver, bytes_max: usize) -> Result<Option<bytes::Bytes>, Trouble> {
    loop {
        match timeout(STALLED, body.next(bytes_max)).await {
            Ok(chunk) => return chunk.map_err(Trouble::Stream),
            Err(_) if receiver.budget.free_bytes() < LANDER_BYTES => return Err(Trouble::Stalled),
            Err(_) => {}
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
