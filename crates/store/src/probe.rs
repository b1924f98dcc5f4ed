//! Whether a service keeps the one promise that a ledger needs: of several who create an object at once, exactly one succeeds.
//!
//! Services that ignore `If-None-Match: *`, and those that look first and write then, let two writers both believe that a
//! slot is theirs: recovery points would be lost silently. So a bucket is tried with racing writers before a store is made in
//! it. A probe cannot prove that there is no race; it refuses the services that are known to have one.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};
use std::thread;

use bytes::Bytes;
use data_encoding::HEXLOWER;

use crate::backend::{Backend, Created, block_on};
use crate::error::{Result, StoreError};
use crate::names;
use crate::store::random;

/// Objects that are raced for. Services that look first and write then let two win in more than half of them.
const ROUNDS: u32 = 24;
/// Writers per object.
const WRITERS: usize = 6;
/// Bytes of each: enough that a write takes a while.
const BYTES: usize = 64 << 10;

/// Races for objects, and removes them; those of a probe that was interrupted stay, and harm nobody.
///
/// # Errors
/// [`StoreError::NotCreateOnly`]; what the service says.
pub(crate) fn create_only(backend: &Arc<dyn Backend>) -> Result<()> {
    let of = HEXLOWER.encode(&random()?);
    let tried = (0..ROUNDS).try_for_each(|round| race(&**backend, &of, round));
    let cleared = (0..ROUNDS).try_for_each(|round| block_on(backend.delete(&names::probe(&of, round))));
    tried.and(cleared)
}

fn race(backend: &dyn Backend, of: &str, round: u32) -> Result<()> {
    let name = names::probe(of, round);
    let refused = |how: String| StoreError::NotCreateOnly { place: backend.place(), how };
    let content = |writer: usize| Bytes::from(vec![writer as u8; BYTES]);
    let start = Barrier::new(WRITERS);
    let answers: Vec<Result<Created>> = thread::scope(|scope| {
        let (start, name) = (&start, &name);
        let write = move |writer: usize| {
            start.wait();
            block_on(backend.create(name, content(writer)))
        };
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        writers.into_iter().map(|w| w.join().expect("a probing thread does not panic")).collect()
    });
    let mut winners = BTreeSet::new();
    for (writer, answer) in answers.into_iter().enumerate() {
        if answer? == Created::New {
            winners.insert(writer);
        }
    }
    if winners.len() > 1 {
        return Err(refused(format!(
            "{} of {WRITERS} who created one object at once were told that it was theirs",
            winners.len()
        )));
    }
    let read = |when: &str| match block_on(backend.get(&name, BYTES as u64))? {
        None => Err(refused(format!("an object was not there {when}"))),
        Some(bytes) => Ok(bytes),
    };
    let first = read("right after it was created")?;
    // An answer may have been lost, so that nobody knows of having won; whose it is must be plain all the same.
    let owner = first.first().map(|b| usize::from(*b)).filter(|writer| *writer < WRITERS && first == content(*writer));
    match owner {
        Some(owner) if winners.is_empty() || winners.contains(&owner) => {}
        _ => return Err(refused("an object does not hold what its winner wrote".to_owned())),
    }
    if block_on(backend.create(&name, Bytes::from_static(b"late")))? == Created::New || read("any more")? != first {
        return Err(refused("an object that was there was written over".to_owned()));
    }
    Ok(())
}
