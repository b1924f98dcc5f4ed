//! One part's way: from its stream, verified as it comes, into the store's landing, and a word to the group.
//!
//! A part never waits for another's *stream*: unread, it would fill its connection's window and keep the other from ending. It
//! waits at most for one that is being synced. Memory is bounded by what a connection may open (its share of all part
//! streams, see `process`), and by what a part on its way in holds at most, [`LANDER_BYTES`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use farside_layer::{PART_BYTES_MAX, VERIFIER_BYTES_MAX};
use farside_store::{PartLander, StoreError};
use farside_transport::{CloseCode, IncomingPart, PartError, PartReceiver};
use farside_wire::{PART_HEADER_BYTES, PartHeader};
use tokio::sync::oneshot;

use crate::door::{Arriving, Session};
use crate::group::{BeginPart, GroupHandle, Mail, PartOutcome};
use crate::process::Receiver;

/// What a part on its way in takes at most: a batch, and what verifies it. † All parts that come at once may take that much, since what is
/// scattered over many regions is so for every source that catches up: one that took more than its share was closed, and began anew.
pub(crate) const LANDER_BYTES: u64 = (BATCH_BYTES + VERIFIER_BYTES_MAX) as u64;
/// Bytes verified and written at once.
const BATCH_BYTES: usize = 256 << 10;

/// What parts on their way in hold, all together.
#[derive(Debug)]
pub(crate) struct Memory {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    used_bytes_max: AtomicU64,
}

/// What one part holds; given back when dropped.
#[derive(Debug)]
struct Held<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl Memory {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: AtomicU64::new(0), used_bytes_max: AtomicU64::new(0) }
    }

    /// Now, at most so far, and the limit.
    pub(crate) fn status(&self) -> (u64, u64, u64) {
        (self.used_bytes.load(Ordering::Relaxed), self.used_bytes_max.load(Ordering::Relaxed), self.limit_bytes)
    }

    fn hold(&self) -> Held<'_> {
        Held { memory: self, bytes: 0 }
    }
}

impl Held<'_> {
    /// Says how much it is now.
    fn set(&mut self, bytes: u64) {
        let memory = self.memory;
        let total = memory.used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = total.saturating_sub(self.bytes);
        memory.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
        memory.used_bytes_max.fetch_max(total, Ordering::Relaxed);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.memory.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Lands a part, or says why not.
pub(crate) async fn land(receiver: Arc<Receiver>, session: Arc<Session>, group: GroupHandle, part: IncomingPart) {
    let header: Option<&[u8; PART_HEADER_BYTES]> = part.header[..].try_into().ok();
    let header = match header.map(PartHeader::decode) {
        Some(Ok(header)) => header,
        Some(Err(error)) => return session.close_soon(CloseCode::Protocol, &error.to_string()),
        None => return session.close_soon(CloseCode::Protocol, "a part header of the wrong length"),
    };
    // There are at least as many permits as streams may be open, so who waits here waits for a disk.
    session.permits_all_streams();
    let Ok(_permit) = session.landers.acquire().await else { return };
    let (reply, answer) = oneshot::channel();
    if group.tell(Mail::BeginPart { session: session.id, header, reply }).await.is_err() {
        return;
    }
    let mut body = part.body;
    let mut arriving = session.arriving();
    let outcome = match answer.await {
        Err(_) | Ok(BeginPart::Drop) => return,
        Ok(BeginPart::Swallow) => match swallow(&mut arriving, &mut *body).await {
            Ok(bytes) => PartOutcome::Unwanted { bytes },
            Err(trouble) => return end(&session, trouble),
        },
        Ok(BeginPart::Failed(error)) => PartOutcome::Failed(error),
        Ok(BeginPart::Land(lander)) => match write(&receiver.memory, &session, &mut arriving, &mut *body, *lander).await {
            Ok(Some(entry)) => PartOutcome::Landed(entry),
            Ok(None) => return,
            Err(Trouble::Store(error)) => PartOutcome::Failed(error),
            Err(trouble) => return end(&session, trouble),
        },
    };
    arriving.keep();
    let _ = group.tell(Mail::Part { session: session.id, header, outcome }).await;
}

enum Trouble {
    Store(StoreError),
    Stream(PartError),
    TooLong,
    NotGranted,
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<PartError> for Trouble {
    fn from(error: PartError) -> Self {
        Self::Stream(error)
    }
}

/// A part that came to nothing.
fn end(session: &Arc<Session>, trouble: Trouble) {
    match trouble {
        // The source knows, and what was written is gone.
        Trouble::Stream(error) => tracing::debug!(%error, "a part ended early"),
        Trouble::TooLong => session.close_soon(CloseCode::Protocol, "a part is longer than a part may be"),
        Trouble::NotGranted => session.close_soon(CloseCode::Protocol, "more was sent than this source was granted"),
        Trouble::Store(error) => session.close_soon(CloseCode::Refused, &error.to_string()),
    }
}

/// Reads the body to its end and writes it; `None` when the session was stopped before the end.
async fn write(
    memory: &Memory,
    session: &Arc<Session>,
    arriving: &mut Arriving<'_>,
    body: &mut dyn PartReceiver,
    mut lander: PartLander,
) -> Result<Option<farside_ledger::PartEntry>, Trouble> {
    let mut held = memory.hold();
    let mut batch = BytesMut::with_capacity(BATCH_BYTES);
    loop {
        held.set((batch.capacity() + lander.held_bytes()) as u64);
        let chunk = body.next(BATCH_BYTES - batch.len()).await?;
        let last = chunk.is_none();
        if !arriving.add(chunk.as_ref().map_or(0, Bytes::len)) {
            return Err(Trouble::NotGranted);
        }
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
            drop(batch);
            // † Its stream is read, and lets the next one come: whoever waits for the disk holds nothing.
            let lander = lander.complete()?;
            held.set(lander.held_bytes() as u64);
            let Ok(_permit) = session.finishing.acquire().await else { return Ok(None) };
            let session = Arc::clone(session);
            return Ok(blocking(move || session.while_landing(|| lander.finish()).transpose()).await?);
        }
    }
}

/// Reads a body that nobody wants; says how long it was.
async fn swallow(arriving: &mut Arriving<'_>, body: &mut dyn PartReceiver) -> Result<u64, Trouble> {
    let mut bytes = 0_u64;
    while let Some(chunk) = body.next(BATCH_BYTES).await? {
        bytes += chunk.len() as u64;
        if bytes > PART_BYTES_MAX {
            return Err(Trouble::TooLong);
        }
        if !arriving.add(chunk.len()) {
            return Err(Trouble::NotGranted);
        }
    }
    Ok(bytes)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_until_it_is_given_back() {
        let memory = Memory::new(3 * LANDER_BYTES);
        let (mut small, mut large) = (memory.hold(), memory.hold());
        small.set(LANDER_BYTES);
        large.set(LANDER_BYTES);
        large.set(2 * LANDER_BYTES);
        drop(large);
        assert_eq!(memory.status(), (LANDER_BYTES, 3 * LANDER_BYTES, 3 * LANDER_BYTES));
        small.set(1);
        assert_eq!(memory.status().0, 1);
        drop(small);
        assert_eq!(memory.status().0, 0);
    }
}
