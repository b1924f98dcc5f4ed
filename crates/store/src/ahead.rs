//! Records of a ledger, read ahead of whoever applies them: by several threads, handed over in the order of their slots.
//!
//! A cold disk answers many small reads at once as fast as one, and it answers while somebody else decodes a checkpoint; so reading begins
//! when the names are known, and waits for nobody but for memory.
//!
//! Invariants: what was read and not handed over has at most [`BYTES_MAX`] in the ledger's objects, unless one alone has more; of the slots
//! that are wanted, the lowest is always read. It deliberately judges nothing: what is found in a slot is for [`crate::replay`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use farside_ledger::decode_repeats;
use farside_region::Slot;

#[cfg(test)]
use crate::backend::counting::SideBySide;
use crate::backend::{Backend, block_on};
use crate::error::Result;
use crate::names::GroupNames;
#[cfg(not(test))]
use crate::replay::SideBySide;
use crate::replay::{ReadSlot, Slots, read_and_see, threads_for};

/// Bytes of records read ahead, at most, unless one alone has more: in memory they take many times that.
const BYTES_MAX: u64 = 1 << 20;
/// What a record counts for of which no more is known than that it is no longer than most.
pub(crate) const BYTES_OF_MOST: u64 = 4 << 10;

/// What lies in the slots from one on.
pub(crate) struct Ahead<'a> {
    backend: &'a dyn Backend,
    names: &'a GroupNames,
    slots: &'a Slots,
    wanted: Vec<u64>,
    threads: usize,
    progress: Mutex<Progress>,
    /// Something was read, or handed over.
    changed: Condvar,
    side_by_side: SideBySide,
    /// Objects that do not repeat what is before them, though they say so; `None`: nobody wants to know.
    spoiled: Option<Mutex<BTreeSet<Slot>>>,
}

/// Places in `wanted`.
#[derive(Default)]
struct Progress {
    /// To be handed over next.
    next: usize,
    /// To be read next.
    unread: usize,
    read: BTreeMap<usize, (u64, Result<ReadSlot>)>,
    /// What was read, or is being read, and was not handed over.
    held_bytes: u64,
    is_over: bool,
}

/// Ends the reading, however its owner goes.
struct Ends<'a, 's>(&'s Ahead<'a>);

impl Drop for Ends<'_, '_> {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl<'a> Ahead<'a> {
    pub(crate) fn new(backend: &'a dyn Backend, names: &'a GroupNames, slots: &'a Slots, from: u64) -> Self {
        let wanted = slots.from(from);
        let threads = threads_for(backend, wanted.len());
        let (progress, changed, side_by_side) = (Mutex::default(), Condvar::new(), SideBySide::begin());
        Self { backend, names, slots, wanted, threads, progress, changed, side_by_side, spoiled: None }
    }

    /// Those below a slot only.
    pub(crate) fn below(mut self, slot: u64) -> Self {
        self.wanted.retain(|wanted| *wanted < slot);
        self.threads = threads_for(self.backend, self.wanted.len());
        self
    }

    /// What objects repeat is held against them, too.
    pub(crate) fn looking_at_repeats(self) -> Self {
        Self { spoiled: Some(Mutex::default()), ..self }
    }

    /// Objects whose own records are whole, and what they repeat is not, of those that were read.
    pub(crate) fn spoiled(&self) -> BTreeSet<Slot> {
        let of = |spoiled: &Mutex<BTreeSet<Slot>>| std::mem::take(&mut *spoiled.lock().unwrap_or_else(PoisonError::into_inner));
        self.spoiled.as_ref().map(of).unwrap_or_default()
    }

    /// Reads while `work` goes on, which takes what was read.
    pub(crate) fn during<R>(self, work: impl FnOnce(&Self) -> R) -> R {
        let done = thread::scope(|scope| {
            let ends = Ends(&self);
            self.start(scope);
            let done = work(&self);
            drop(ends);
            done
        });
        self.side_by_side.end();
        done
    }

    /// A few are read by whoever takes them.
    fn start<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        if self.threads > 1 {
            (0..self.threads).for_each(|_| drop(scope.spawn(|| self.read_on())));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'p>(&self, progress: MutexGuard<'p, Progress>) -> MutexGuard<'p, Progress> {
        self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner)
    }

    fn read_on(&self) {
        let on_panic = Ends(self);
        let mut progress = self.lock();
        while !progress.is_over && progress.unread < self.wanted.len() {
            let at = progress.unread;
            progress.unread += 1;
            drop(progress);
            let bytes = self.bytes_of(self.wanted[at]);
            progress = self.lock();
            while !progress.is_over && at > progress.next && progress.held_bytes + bytes > BYTES_MAX {
                progress = self.wait(progress);
            }
            if progress.is_over {
                break;
            }
            progress.held_bytes += bytes;
            drop(progress);
            let read = self.side_by_side.run(|| self.read(at));
            progress = self.lock();
            progress.read.insert(at, (bytes, read));
            if at == progress.next {
                self.changed.notify_all();
            }
        }
        drop(progress);
        std::mem::forget(on_panic);
    }

    /// How much memory it is to count for.
    fn bytes_of(&self, slot: u64) -> u64 {
        let asked = || block_on(self.backend.size(&self.names.record(Slot(slot)))).ok().flatten();
        match self.slots.bytes_of(slot) {
            Some(bytes) => bytes,
            // What cannot be looked at is not there, or is read alone: reading says which.
            None => asked().unwrap_or(BYTES_OF_MOST),
        }
    }

    fn read(&self, at: usize) -> Result<ReadSlot> {
        let slot = self.wanted[at];
        read_and_see(self.backend, self.names, Slot(slot), self.slots.voids.contains(&slot), |object| {
            if let Some(spoiled) = &self.spoiled
                && decode_repeats(object).is_err()
            {
                spoiled.lock().unwrap_or_else(PoisonError::into_inner).insert(Slot(slot));
            }
        })
    }

    /// The next slot in which anything lies, and what; in turn, by one thread.
    pub(crate) fn take(&self) -> Option<(Slot, Result<ReadSlot>)> {
        let mut progress = self.lock();
        let at = progress.next;
        let slot = Slot(*self.wanted.get(at)?);
        if self.threads <= 1 {
            progress.next += 1;
            drop(progress);
            return Some((slot, self.read(at)));
        }
        loop {
            if let Some((bytes, read)) = progress.read.remove(&at) {
                progress.next += 1;
                progress.held_bytes -= bytes;
                drop(progress);
                // Somebody may wait for this memory, or be the one now who need not wait.
                self.changed.notify_all();
                return Some((slot, read));
            }
            assert!(!progress.is_over, "a reading thread does not panic");
            progress = self.wait(progress);
        }
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
