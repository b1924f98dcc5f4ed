//! The replication state machines: what is cut, what is sent again, what is published, and when a bit may be cleared.
//!
//! [`source::Source`] decides for one group of volumes at the protected host, [`target::Target`] for the same group at the
//! receiver. Both are sans-I/O: `step(now, event, &mut actions)` takes one event and says what is to be done; they hold no
//! clock, thread, file, socket or randomness, so that a simulator can run a year of faults in a minute. `now` is nanoseconds
//! of the caller's CLOCK_MONOTONIC and never goes back.
//!
//! Invariants:
//! - The data does not pass through here. A *part* is read, digested and sent by the sender pipeline, which reports its
//!   footer's digest; the receiver's landing reports the same; the end message compares.
//! - Bits are cleared by one thing only: a `published` acknowledgement (L7).
//! - Nothing is sent for a volume before its position was checked on this connection (T7).
//!
//! Deliberately not here: the write path and its claims (`shim`), bytes of parts (`layer`), files (`store`), threads and
//! time-outs of connections (the processes).

pub mod cohort;
pub mod failback;
pub mod lineage;
pub mod quiet;
pub mod source;
pub mod target;

#[cfg(test)]
mod tests;
