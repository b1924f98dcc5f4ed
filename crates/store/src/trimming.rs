//! Records of the ledger, and states of checkpoints, that nobody asks for any more go.
//!
//! A record that a checkpoint covers is read by nobody who opens the group. It is asked for what its layer or merge touched, as long as replay
//! [remembers](farside_ledger::State::remembers) its slot, and by replay where newer checkpoints cannot be used. Invariants:
//! - no record goes that replay remembers, nor one at or above the end of an [anchor](checkpoint::anchor), whose state was read back whole, and
//!   which was found to be of this history, root by root up to the head: so where the newest states rot, replay begins there;
//! - before it goes, the digest of every slot of its checkpoint is in an object of its own, for positions so old;
//! - the last run below the anchor's end stays, by which the anchor is known to be of this ledger ([`checkpoint::strange`]);
//! - two states are enough, as if the newest rots there is another: older ones go once both were found there, with roots of this history, but for
//!   those that are or may become anchors;
//! - nothing goes of a ledger that is torn, while who looks knows less than there is, or in a directory while somebody reads.
//!
//! Whoever comes too late for a slot that is empty by now hears from its checkpoint ([`crate::checkpoint`]); what he put there goes as well.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use farside_ledger::{BATCH_SLOTS, CheckpointPlace, run_of};
use farside_region::{GroupId, Slot, mutation};

use super::GroupStore;
use crate::backend::{ObjectName, block_on};
use crate::checkpoint::{self, anchor, may_be_anchor, span};
use crate::error::Result;
use crate::locks::DeletionGuard;
use crate::names::{GroupObject, SLOTS_PER_FOLDER};
use crate::replay::parallel;

/// Objects deleted in one step, since records wait for it.
const DELETED_AT_ONCE: usize = 64;
/// A step comes no sooner after the one before.
const PAUSE: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(5) };
/// Nor after one that failed, or found somebody reading.
const AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(60) };

/// After the opening of a group others are waited for, and others are opened; not for all of them at once.
const FIRST_AFTER: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(600) };

/// How far it has come.
#[derive(Debug)]
pub(super) struct Trimming {
    /// The anchor that was found whole and of this history.
    whole: Option<u64>,
    pass: Option<Pass>,
    /// So many checkpoints there were when the last pass began, or nothing could go.
    passed: Option<u64>,
    /// The same of states of old ones.
    states: Option<u64>,
    not_before: Option<Instant>,
}

impl Trimming {
    /// Of a group that was just opened.
    pub(super) fn of(group: GroupId) -> Self {
        let spread = FIRST_AFTER.mul_f64(f64::from(group.0[0]) / 128.0);
        Self { whole: None, pass: None, passed: None, states: None, not_before: Some(Instant::now() + FIRST_AFTER + spread) }
    }
}

/// Once through all that lies below an anchor's end.
#[derive(Debug)]
struct Pass {
    anchor: u64,
    /// Folders of the ledger that are still to be looked at, ascending.
    folders: VecDeque<u64>,
    /// What of the last one goes.
    goes: VecDeque<ObjectName>,
}

impl Pass {
    /// Records below this slot may go.
    fn floor(&self) -> u64 {
        (self.anchor + 1) * span()
    }
}

impl GroupStore {
    /// Deletes some records, or states, that nobody asks for any more, if there are some and it is time; says how many objects went. To be called now and then.
    ///
    /// # Errors
    /// [`StoreError::Uncertain`](crate::StoreError::Uncertain), or what the medium says. What fails is tried again later, and costs nothing but room.
    pub fn trim_ledger(&mut self) -> Result<usize> {
        self.certain()?;
        let is_early = self.trimming.not_before.is_some_and(|at| Instant::now() < at);
        if self.torn.is_some() || !self.sweeps || is_early {
            return Ok(0);
        }
        let checkpoints = self.state().next_slot().0 / span();
        let is_passed = self.trimming.pass.is_none() && self.trimming.passed == Some(checkpoints);
        if is_passed && self.trimming.states == Some(checkpoints) {
            return Ok(0);
        }
        let began = Instant::now();
        let done = self.trim_some(checkpoints);
        let pause = if matches!(done, Ok(Some(_))) { PAUSE } else { AGAIN };
        self.trimming.not_before = Some(Instant::now() + pause.max(began.elapsed()));
        Ok(done?.unwrap_or(0))
    }

    /// One step. `None`: it must wait.
    fn trim_some(&mut self, checkpoints: u64) -> Result<Option<usize>> {
        // † What has come to lie in its place is another store's, with records in slots like ours.
        self.shared.same_place()?;
        if self.trimming.states != Some(checkpoints) {
            let dropped = self.drop_older_states();
            // What fails is in no record's way: it comes up again with the next checkpoint.
            let is_done = matches!(dropped, Err(_) | Ok(Some(0)));
            self.trimming.states = is_done.then_some(checkpoints);
            return dropped;
        }
        let Some(mut pass) = self.trimming.pass.take() else {
            self.trimming.passed = Some(checkpoints);
            self.trimming.pass = self.begin_pass(checkpoints)?;
            return Ok(Some(0));
        };
        if pass.goes.is_empty()
            && let Some(folder) = pass.folders.pop_front()
        {
            // What cannot be looked at now comes up again with the next pass.
            let looked = self.what_goes(folder, pass.floor()).map(|goes| pass.goes = goes);
            self.trimming.pass = Some(pass);
            return looked.map(|()| Some(0));
        }
        let Some(_guard) = self.nobody_reads()? else {
            self.trimming.pass = Some(pass);
            return Ok(None);
        };
        if pass.goes.is_empty() {
            self.drop_older_anchors(pass.anchor)?;
            return Ok(Some(0));
        }
        let batch: Vec<ObjectName> = pass.goes.drain(..pass.goes.len().min(DELETED_AT_ONCE)).collect();
        self.trimming.pass = Some(pass);
        let backend = &*self.segments.backend;
        // In a directory one after another, a record before its void.
        let deleted: Vec<Result<()>> = if self.shared.is_dir {
            batch.iter().map(|name| block_on(backend.delete(name))).collect()
        } else {
            parallel(backend, &batch, |name| block_on(backend.delete(name)))
        };
        let gone = deleted.iter().filter(|deleted| deleted.is_ok()).count();
        deleted.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(Some(gone))
    }

    /// `None` while somebody reads, in a directory.
    fn nobody_reads(&self) -> Result<Option<Option<DeletionGuard>>> {
        if !self.shared.is_dir {
            return Ok(Some(None));
        }
        Ok(DeletionGuard::try_take(self.shared.staging.root())?.map(Some))
    }

    /// Some of the states that replay does not begin with, and never may. Says how many went. `None`: it must wait.
    fn drop_older_states(&self) -> Result<Option<usize>> {
        let (backend, names) = (&*self.segments.backend, self.names());
        let (mut roots, mut states) = (BTreeSet::new(), BTreeSet::new());
        for name in block_on(backend.names(&names.checkpoints()))? {
            match names.parse(&name) {
                Some(GroupObject::Checkpoint(number)) => drop(roots.insert(number)),
                Some(GroupObject::CheckpointState(number)) => drop(states.insert(number)),
                _ => {}
            }
        }
        let Some(&newest) = roots.range(..self.state().next_slot().0 / span()).next_back() else { return Ok(Some(0)) };
        let old = states.range(..(newest + 1).saturating_sub(checkpoint::STATES)).copied().filter(|old| !may_be_anchor(*old));
        let old: Vec<u64> = old.take(DELETED_AT_ONCE).collect();
        if old.is_empty() || !self.are_there(newest)? {
            return Ok(Some(0));
        }
        let Some(_guard) = self.nobody_reads()? else { return Ok(None) };
        let (mut gone, mut failed) = (0, None);
        for number in old {
            match block_on(backend.delete(&names.checkpoint_state(number))) {
                Ok(()) => gone += 1,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Some(gone)), Err)
    }

    /// Whether a checkpoint is of this history, the one before it is the one that it names, and both have states, of the length that these should have.
    fn are_there(&self, newest: u64) -> Result<bool> {
        let (backend, names, group) = (&*self.segments.backend, self.names(), self.state().group());
        let last =
            CheckpointPlace { number: newest, slots: span() }.end().and_then(|end| self.state().digest_at(Slot(end.0 - 1)));
        let mut before = None;
        for number in (newest + 1).saturating_sub(checkpoint::STATES)..=newest {
            let Ok((root, digest)) = checkpoint::read_root(backend, names, group, number)? else { return Ok(false) };
            let is_ours = if number == newest { last == Some(root.last) && before == Some(root.previous) } else { true };
            if !is_ours || block_on(backend.size(&names.checkpoint_state(number)))? != Some(root.state_bytes) {
                return Ok(false);
            }
            before = Some(digest);
        }
        Ok(true)
    }

    /// Where a pass goes; `None`: nothing may go.
    fn begin_pass(&mut self, checkpoints: u64) -> Result<Option<Pass>> {
        let Some(anchor) = anchor(self.state()) else { return Ok(None) };
        let (backend, names) = (&*self.segments.backend, self.names());
        // Both of the newest states, which replay begins with, must be there; whether they are whole whoever opens the group sees.
        for number in checkpoints.saturating_sub(checkpoint::STATES)..checkpoints {
            if block_on(backend.size(&names.checkpoint_state(number)))?.is_none() {
                return Ok(None);
            }
        }
        if !self.is_whole(anchor, checkpoints)? {
            self.trimming.whole = None;
            return Ok(None);
        }
        self.trimming.whole = Some(anchor);
        let mut pass = Pass { anchor, folders: VecDeque::new(), goes: VecDeque::new() };
        let folders = block_on(self.segments.backend.folders(&self.names().ledger()))?;
        let folders: BTreeSet<u64> = folders.iter().filter_map(|folder| folder.parse().ok()).collect();
        let floor = pass.floor();
        pass.folders.extend(folders.into_iter().filter(|folder| folder.saturating_mul(SLOTS_PER_FOLDER) < floor));
        Ok(Some(pass))
    }

    /// Whether a checkpoint is whole, and the roots from it on lead to what was replayed. All of it is read once.
    fn is_whole(&self, anchor: u64, checkpoints: u64) -> Result<bool> {
        let (backend, names, group) = (&*self.segments.backend, self.names(), self.state().group());
        let is_there = block_on(backend.size(&names.checkpoint_state(anchor)))?.is_some();
        if !is_there || self.trimming.whole == Some(anchor) {
            return Ok(is_there);
        }
        let warn = |file: &str, why: &str| {
            tracing::warn!(group = %names, file, why, "old records stay, as the checkpoint that would stand for them cannot be used");
            Ok(false)
        };
        // A service holds what it keeps against digests of its own.
        if self.shared.is_dir
            && !mutation::on("records go for a checkpoint that nobody read back")
            && let Err(bad) = checkpoint::read(backend, names, group, anchor, None)?
        {
            return warn(&bad.file, &bad.why);
        }
        let mut before = None;
        let numbers: Vec<u64> = (anchor..checkpoints).collect();
        let roots = parallel(backend, &numbers, |number| checkpoint::read_root(backend, names, group, *number));
        for (number, root) in numbers.into_iter().zip(roots) {
            let (root, digest) = match root? {
                Ok(root) => root,
                Err(bad) => return warn(&bad.file, &bad.why),
            };
            if before.is_some_and(|before| before != root.previous) {
                return warn(names.checkpoint(number).as_str(), "it does not follow the checkpoint before it");
            }
            let last = CheckpointPlace { number, slots: span() }.end().and_then(|end| self.state().digest_at(Slot(end.0 - 1)));
            // Of those before that replay has forgotten it.
            if number + 1 == checkpoints && last != Some(root.last) || last.is_some_and(|last| last != root.last) {
                return warn(names.checkpoint(number).as_str(), "it is not of this ledger's history");
            }
            before = Some(digest);
        }
        Ok(before.is_some())
    }

    /// What of a folder of the ledger goes, of what lies below a slot: the records first.
    fn what_goes(&self, folder: u64, floor: u64) -> Result<VecDeque<ObjectName>> {
        let (backend, names, group) = (&*self.segments.backend, self.names(), self.state().group());
        let (mut records, mut voids) = (BTreeSet::new(), BTreeSet::new());
        for name in block_on(backend.names(&names.ledger_folder(folder)))? {
            match names.parse(&name) {
                Some(GroupObject::Record(slot)) => drop(records.insert(slot.0)),
                Some(GroupObject::RecordVoid(slot)) => drop(voids.insert(slot.0)),
                _ => {}
            }
        }
        let floor = floor.saturating_sub(BATCH_SLOTS);
        let all: BTreeSet<u64> = records.union(&voids).copied().collect();
        let mut goes = Vec::new();
        for slot in all.range(..floor).copied() {
            // A batch reaches to the next object, or to the end of its run.
            let end = all.range(slot + 1..).next().copied().unwrap_or(u64::MAX).min(run_of(Slot(slot)).0 + BATCH_SLOTS);
            let is_remembered = (slot..end).any(|slot| self.state().remembers(Slot(slot)));
            if !is_remembered || mutation::on("a record goes that replay remembers") {
                goes.push(slot);
            }
        }
        let mut told = BTreeSet::new();
        for number in goes.iter().map(|slot| slot / span()).collect::<BTreeSet<_>>() {
            match checkpoint::digests(backend, names, group, number)? {
                Some(Ok(_)) => drop(told.insert(number)),
                Some(Err(bad)) => {
                    tracing::warn!(group = %names, file = %bad.file, why = %bad.why, "the records below it stay");
                }
                // Of an earlier Farside.
                None => {}
            }
        }
        goes.retain(|slot| told.contains(&(slot / span())));
        let of_records = goes.iter().filter(|slot| records.contains(slot)).map(|slot| names.record(Slot(*slot)));
        let of_voids = goes.iter().filter(|slot| voids.contains(slot)).map(|slot| names.record_void(Slot(*slot)));
        Ok(of_records.chain(of_voids).collect())
    }

    /// Nothing begins at them any more.
    fn drop_older_anchors(&self, anchor: u64) -> Result<()> {
        let (backend, names) = (&*self.segments.backend, self.names());
        for name in block_on(backend.names(&names.checkpoints()))? {
            if let Some(GroupObject::CheckpointState(number)) = names.parse(&name)
                && number < anchor
                && may_be_anchor(number)
            {
                block_on(backend.delete(&name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "trimming_tests.rs"]
mod tests;
