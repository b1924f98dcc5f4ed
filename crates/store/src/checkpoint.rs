//! Checkpoints of a group's ledger: written by its writer, believed by whoever opens it (`docs/formats/store.md`).
//!
//! Invariants:
//! - a checkpoint exists from the moment its root does; its state, and every record that it covers, was durable before;
//! - it comes only after the one before it, and covers exactly its slots;
//! - one that is not of this ledger's history, however whole it is, is not believed: a store that was copied goes two ways, and a
//!   file of the one may come to lie in the other;
//! - a slot that a checkpoint covers is decided by that checkpoint's state, whatever lies in the slot or does not;
//! - one that could not be written when its last slot was is written later, or by the next start, and none after it before it.
//!
//! Of the records that it covers those stay that replay remembers, and others until they are deleted, as are states of old ones (`trimming.rs`).

use std::collections::{BTreeSet, VecDeque};
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside_ledger::{
    CHECKPOINT_ROOT_BYTES, CHECKPOINT_STATE_BYTES_MAX, CheckpointError, CheckpointPlace, CheckpointRoot, EncodedCheckpoint,
    SlotDigests, State, run_of,
};
use farside_region::{GroupId, RecordDigest, Slot};

use crate::backend::{Backend, Created, ObjectName, block_on, list_all};
use crate::error::{Result, StoreError};
use crate::image::GroupImage;
use crate::names::{CHECKPOINT_SLOTS, GroupNames, GroupObject};
use crate::replay::{Records, Slots, get, read_slot};

/// How many of the newest checkpoints keep their states.
pub(crate) const STATES: u64 = 2;
/// And each of so many keeps it until one after it is an [anchor].
const ANCHORS: u64 = if cfg!(test) { 2 } else { 32 };

/// What is read of a root, at most: some more than we know, since a newer version is to be told from damage.
pub(crate) const ROOT_READ_BYTES: u64 = 16 * CHECKPOINT_ROOT_BYTES as u64;

/// Slots that a checkpoint covers.
#[cfg(not(any(test, feature = "mutations")))]
pub(crate) fn span() -> u64 {
    CHECKPOINT_SLOTS
}

#[cfg(any(test, feature = "mutations"))]
thread_local! {
    /// Few in tests, so that every history of theirs has some.
    pub(crate) static SPAN: std::cell::Cell<u64> =
        const { std::cell::Cell::new(if cfg!(test) { CHECKPOINT_SLOTS / 512 } else { CHECKPOINT_SLOTS }) };
}

/// Slots that a checkpoint covers.
#[cfg(any(test, feature = "mutations"))]
pub(crate) fn span() -> u64 {
    SPAN.get()
}

/// On this thread a checkpoint covers so many slots: the simulator's histories are short.
#[cfg(feature = "mutations")]
pub fn set_checkpoint_span(slots: u64) {
    SPAN.set(slots);
}

/// Of the checkpoints that keep their states for long and below whose ends replay remembers single records only the newest but one: where replay
/// can begin, though records below it are gone, and three newer states could not be used.
pub(crate) fn anchor(state: &State) -> Option<u64> {
    (state.remembers_all_from().0 / span() / ANCHORS).checked_sub(2).map(|nth| (nth + 1) * ANCHORS - 1)
}

/// Whether a checkpoint is, or may become, an [anchor].
pub(crate) fn may_be_anchor(number: u64) -> bool {
    (number + 1).is_multiple_of(ANCHORS)
}

/// A checkpoint that is there and cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub(crate) number: u64,
    pub(crate) file: String,
    pub(crate) why: String,
    pub(crate) newer: bool,
    /// See [`strays`].
    pub(crate) stray: bool,
}

impl Unusable {
    /// Whether it stands for that slot or one above it.
    pub(crate) fn reaches(&self, slot: Slot) -> bool {
        !self.stray && CheckpointPlace { number: self.number, slots: span() }.end().is_none_or(|end| slot < end)
    }
}

/// Where replay begins.
#[derive(Debug)]
pub(crate) struct Newest {
    /// What the newest usable checkpoint holds.
    pub(crate) image: GroupImage,
    /// Newer ones, which cannot be used.
    pub(crate) unusable: Vec<Unusable>,
}

/// The checkpoints that exist, by number.
pub(crate) fn list(backend: &dyn Backend, names: &GroupNames) -> Result<BTreeSet<u64>> {
    let mut roots = BTreeSet::new();
    list_all(backend, Some(&names.checkpoints()), |listed| {
        if let Some(GroupObject::Checkpoint(number)) = names.parse(&listed.name) {
            roots.insert(number);
        }
    })?;
    Ok(roots)
}

/// Those that nothing else of the ledger goes with: neither the checkpoint before one nor a slot that is not below it is there.
/// One of them that cannot be used stands for nothing.
pub(crate) fn strays(roots: &BTreeSet<u64>, slots: &Slots) -> BTreeSet<u64> {
    let mut strays = BTreeSet::new();
    for &number in roots {
        let follows = number.checked_sub(1).is_none_or(|before| roots.contains(&before) && !strays.contains(&before));
        let is_reached = number.checked_mul(span()).is_some_and(|first| first < slots.end());
        if !follows && !is_reached {
            strays.insert(number);
        }
    }
    strays
}

/// Whether a checkpoint covers a slot.
pub(crate) fn covers(backend: &dyn Backend, names: &GroupNames, slot: Slot) -> Result<bool> {
    exists(backend, names, CheckpointPlace::covering(slot, span()).number)
}

/// Whether there is a checkpoint of that number. Its root is small: to read it is one request, where it is missing, too.
pub(crate) fn exists(backend: &dyn Backend, names: &GroupNames, number: u64) -> Result<bool> {
    match block_on(backend.get(&names.checkpoint(number), ROOT_READ_BYTES)) {
        Err(StoreError::Damaged { .. }) => Ok(true),
        other => Ok(other?.is_some()),
    }
}

/// The newest one that can be used, or nothing at all before there is any. `roots`: those that exist; `early`: what was read of the newest already.
pub(crate) fn newest(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    roots: &BTreeSet<u64>,
    slots: &Slots,
    mut early: Option<Early>,
) -> Result<Newest> {
    let mut unusable = Vec::new();
    let strays = strays(roots, slots);
    for &number in roots.iter().rev() {
        let mut bad = match read(backend, names, group, number, early.take())? {
            Ok((root, image)) => match strange(backend, names, &root, &image, slots)? {
                None => return Ok(Newest { image, unusable }),
                Some(bad) => bad,
            },
            Err(bad) => bad,
        };
        tracing::error!(group = %names, file = %bad.file, why = %bad.why, "a checkpoint cannot be used");
        bad.stray = strays.contains(&number);
        unusable.push(bad);
    }
    Ok(Newest { image: GroupImage::new(group), unusable })
}

/// Holds a checkpoint, whole as it is, against the root before it and the newest record that it covers: what is wrong if it is of
/// another history than this ledger.
pub(crate) fn strange(
    backend: &dyn Backend,
    names: &GroupNames,
    root: &CheckpointRoot,
    image: &GroupImage,
    slots: &Slots,
) -> Result<Option<Unusable>> {
    let (state, end, number) = (image.state(), image.state().next_slot(), root.place.number);
    let name = names.checkpoint(number);
    let bad = |why: String| Ok(Some(damaged(&name, number, why)));
    let before = match number.checked_sub(1) {
        None => Some([0; 32]),
        Some(before) => read_root(backend, names, state.group(), before)?.ok().map(|(_, digest)| digest),
    };
    if before.is_some_and(|before| before != root.previous) {
        return bad("it does not follow the checkpoint before it".to_owned());
    }
    let records = |slot: Slot| -> Result<Option<Records>> {
        let replaced = slots.voids.contains(&slot.0);
        if replaced || slots.records.contains(&slot.0) { Ok(read_slot(backend, names, slot, replaced)?.ok()) } else { Ok(None) }
    };
    let goes_on = || Ok(records(end)?.map(|next| next[0].0.prev == root.last));
    // In an object of its own, or in a batch.
    let is_there = |slot: Option<u64>| match slot {
        None => Ok::<_, StoreError>(false),
        Some(slot) if slots.records.range(run_of(Slot(slot)).0..=slot).next().is_some() => Ok(true),
        Some(slot) => Ok(block_on(backend.size(&names.record(Slot(slot))))?.is_some()),
    };
    let below = |slots: &BTreeSet<u64>| slots.range(..end.0).next_back().copied();
    let Some(newest) = below(&slots.records).max(below(&slots.voids)).map(Slot) else {
        return if goes_on()? == Some(false) { bad(format!("the record in slot {end} does not follow it")) } else { Ok(None) };
    };
    let newest_record = records(newest)?.and_then(|records| records.last().map(|(record, digest)| (record.slot, *digest)));
    match newest_record {
        Some((slot, digest)) if state.digest_at(slot) == Some(digest) => Ok(None),
        // Where records were given up, somebody who came too late may have put one; then those before it are gone, too.
        Some(_) if !is_there(newest.0.checked_sub(1))? && goes_on()? == Some(true) => Ok(None),
        Some(_) => bad(format!("the record in slot {newest} is not of its history")),
        None if goes_on()? == Some(false) => bad(format!("the record in slot {end} does not follow it")),
        None => Ok(None),
    }
}

/// A checkpoint, read while somebody looks for what comes after it. Its state was not looked at.
#[derive(Debug)]
pub(crate) struct Early {
    root: CheckpointRoot,
    state: Bytes,
}

/// Where the newest one is so old, its state may be long.
const LONG_HISTORY: u64 = if cfg!(test) { 1 } else { 4 };

impl Early {
    /// Reads the newest of them if it may be long, `meanwhile` on this thread. What went wrong with it is met once more by who reads it in its turn.
    pub(crate) fn during<R>(
        backend: &dyn Backend,
        names: &GroupNames,
        group: GroupId,
        newest: Option<CheckpointPlace>,
        meanwhile: impl FnOnce() -> R,
    ) -> (R, Option<Self>) {
        // In a bucket it would be one request more, and the simulator has no threads.
        let is_worth_it = backend.requests_at_once().is_none() && !cfg!(feature = "mutations");
        let Some(place) = newest.filter(|place| place.number >= LONG_HISTORY && is_worth_it) else {
            return (meanwhile(), None);
        };
        let read = move || {
            let root = block_on(backend.get(&names.checkpoint(place.number), ROOT_READ_BYTES)).ok()??;
            let (root, _) = CheckpointRoot::decode(&root, group, place).ok()?;
            let state = block_on(backend.get(&names.checkpoint_state(place.number), root.state_bytes)).ok()??;
            Some(Self { root, state })
        };
        thread::scope(|scope| {
            let early = thread::Builder::new().name("checkpoint".into()).spawn_scoped(scope, read).ok();
            let done = meanwhile();
            (done, early.and_then(|early| early.join().unwrap_or_else(|panic| resume_unwind(panic))))
        })
    }
}

/// One of them, in full. `early`: what was read of one already.
pub(crate) fn read(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    number: u64,
    early: Option<Early>,
) -> Result<Result<(CheckpointRoot, GroupImage), Unusable>> {
    let name = names.checkpoint_state(number);
    let (root, found) = match early.filter(|early| early.root.place.number == number) {
        Some(Early { root, state }) => (root, Ok(state)),
        None => match read_root(backend, names, group, number)? {
            Ok((root, _)) => (root, get(backend, &name, root.state_bytes)?.unwrap_or_else(|| Err("it is missing".to_owned()))),
            Err(bad) => return Ok(Err(bad)),
        },
    };
    let bytes = match found {
        Ok(bytes) => bytes,
        Err(why) => return Ok(Err(damaged(&name, number, why))),
    };
    Ok(match root.state(&bytes) {
        Ok((state, parts)) => Ok((root, GroupImage::from_checkpoint(state, parts))),
        Err(error) => Err(unusable(&name, number, error)),
    })
}

/// A root, and its digest.
type Root = (CheckpointRoot, [u8; 32]);

/// The root of one.
pub(crate) fn read_root(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    number: u64,
) -> Result<Result<Root, Unusable>> {
    let missing = || damaged(&names.checkpoint(number), number, "it is missing".to_owned());
    Ok(look(backend, names, group, number)?.unwrap_or_else(|| Err(missing())))
}

/// The same; `None` if there is none.
pub(crate) fn look(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    number: u64,
) -> Result<Option<Result<Root, Unusable>>> {
    let name = names.checkpoint(number);
    let place = CheckpointPlace { number, slots: span() };
    Ok(get(backend, &name, ROOT_READ_BYTES)?.map(|found| {
        let bytes = found.map_err(|why| damaged(&name, number, why))?;
        CheckpointRoot::decode(&bytes, group, place).map_err(|error| unusable(&name, number, error))
    }))
}

/// The digests of the records that a checkpoint covers, or what is wrong with them; `None`: there are none, as there is no such checkpoint, or it
/// is of an earlier Farside.
pub(crate) fn digests(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    number: u64,
) -> Result<Option<Result<SlotDigests, Unusable>>> {
    let (name, place) = (names.checkpoint_digests(number), CheckpointPlace { number, slots: span() });
    let Some(found) = get(backend, &name, SlotDigests::bytes(span()))? else { return Ok(None) };
    let Some(root) = look(backend, names, group, number)? else { return Ok(None) };
    // One of a copy of the store, which went on by itself, may have come to lie here with its root.
    let next = number.checked_add(1).map_or(Ok(None), |next| look(backend, names, group, next))?.and_then(Result::ok);
    let read = |bytes: Bytes| {
        let (root, digest) = root?;
        if next.is_some_and(|(next, _)| next.previous != digest) {
            return Err(damaged(&name, number, "the checkpoint after it does not follow its checkpoint".to_owned()));
        }
        SlotDigests::decode(&bytes, group, place, root.last).map_err(|error| unusable(&name, number, error))
    };
    Ok(Some(found.map_err(|why| damaged(&name, number, why)).and_then(read)))
}

fn damaged(name: &ObjectName, number: u64, why: String) -> Unusable {
    Unusable { number, file: name.to_string(), why, newer: false, stray: false }
}

fn unusable(name: &ObjectName, number: u64, error: CheckpointError) -> Unusable {
    Unusable { number, file: name.to_string(), why: error.to_string(), newer: error.is_newer(), stray: false }
}

/// How many checkpoints wait in memory to be written.
const DUE_MAX: usize = 2;
/// After a failure the next attempt comes no sooner.
const AGAIN: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(5) };

/// The checkpoint of an image that was at its end.
#[derive(Debug)]
struct Due {
    group: GroupId,
    place: CheckpointPlace,
    /// Of the last record before its slots.
    before: Option<RecordDigest>,
    /// The root, but for the digest of the one before it.
    root: Vec<u8>,
    state: Bytes,
    /// The digests of the records that it covers.
    digests: Option<Bytes>,
}

/// The checkpoints that are to be written, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    due: VecDeque<Due>,
    failed_at: Option<Instant>,
}

impl Checkpoints {
    /// Writes the checkpoint that an image's newest record completes, if it completes one, and those that wait. Without them opening
    /// the group takes longer, and what merges replaced stays. Says below which slot a checkpoint became durable.
    ///
    /// That record stays published whatever happens here; but a sync that fails latches a directory store, so whatever is written
    /// next says that the store must be opened again.
    pub(crate) fn write(&mut self, backend: &dyn Backend, names: &GroupNames, image: &GroupImage) -> Option<Slot> {
        if let Some(place) = CheckpointPlace::completed_by(image.state(), span()) {
            if self.due.len() < DUE_MAX {
                let before = (place.number * place.slots).checked_sub(1).and_then(|slot| image.state().digest_at(Slot(slot)));
                let EncodedCheckpoint { root, state } = encode(place, [0; 32], image);
                let group = image.state().group();
                let digests = SlotDigests::completed_by(image.state(), span()).map(|digests| digests.encode(group).into());
                self.due.push_back(Due { group, place, before, root, state: state.into(), digests });
            } else {
                tracing::warn!(group = %names, number = place.number, "a checkpoint is left to the next start, as those before it");
            }
        }
        let mut durable = None;
        while let Some(due) = self.due.front() {
            if self.failed_at.is_some_and(|at| at.elapsed() < AGAIN) {
                break;
            }
            self.failed_at = None;
            match due.write(backend, names) {
                Ok(true) => durable = due.place.end(),
                Ok(false) => {}
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::warn!(group = %names, number = due.place.number, %error, "a checkpoint cannot be written");
                }
                Err(error) => {
                    tracing::warn!(group = %names, number = due.place.number, %error, "a checkpoint could not be written yet");
                    self.failed_at = Some(Instant::now());
                    break;
                }
            }
            self.due.pop_front();
        }
        durable
    }
}

impl Due {
    /// If the one before it is there. Says whether it, root and state, is durable now.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]: another one is there; or what the file system says.
    fn write(&self, backend: &dyn Backend, names: &GroupNames) -> Result<bool> {
        let Self { group, place, .. } = *self;
        // The writer of a record that was found may have died before it was durable.
        if let Some(last) = place.end().and_then(|end| end.0.checked_sub(1)) {
            block_on(backend.sync(&names.record(Slot(last))))?;
        }
        // Of an old one only the root is kept. A replay from the beginning, because newer states rotted, would write each state again.
        if exists(backend, names, place.number)? && exists(backend, names, place.number + STATES)? {
            return Ok(false);
        }
        let previous = match place.number.checked_sub(1) {
            None => [0; 32],
            Some(before) => match read_root(backend, names, group, before)? {
                Ok((root, digest)) if self.before == Some(root.last) => digest,
                Ok(_) => {
                    tracing::warn!(%group, number = before, "no checkpoint can follow one of another history");
                    return Ok(false);
                }
                Err(bad) => {
                    tracing::warn!(%group, file = %bad.file, why = %bad.why, "no checkpoint can follow one that cannot be used");
                    return Ok(false);
                }
            },
        };
        if self.state.len() as u64 > CHECKPOINT_STATE_BYTES_MAX {
            tracing::warn!(%group, number = place.number, bytes = self.state.len(), "the checkpoint would be too large");
            return Ok(false);
        }
        let (root, _) = CheckpointRoot::decode(&self.root, group, place).expect("encoded here");
        if let Some(digests) = &self.digests {
            create_part(backend, names, place.number, &names.checkpoint_digests(place.number), digests.clone())?;
        }
        create_part(backend, names, place.number, &names.checkpoint_state(place.number), self.state.clone())?;
        create(backend, &names.checkpoint(place.number), CheckpointRoot { previous, ..root }.encode().into())?;
        Ok(true)
    }
}

/// Makes durable what was read of the newest checkpoint: its writer may have died before it was.
pub(crate) fn sync(backend: &dyn Backend, names: &GroupNames, end: Slot) -> Result<()> {
    let Some(number) = (end.0 / span()).checked_sub(1) else { return Ok(()) };
    block_on(backend.sync(&names.checkpoint_state(number)))?;
    block_on(backend.sync(&names.checkpoint(number)))
}

/// What lies in the place of a state, or of digests, before there is the root is nobody's: cut off by a crash, or rotten since.
fn create_part(backend: &dyn Backend, names: &GroupNames, number: u64, name: &ObjectName, content: Bytes) -> Result<()> {
    match create(backend, name, content.clone()) {
        Err(StoreError::Damaged { .. } | StoreError::Unreadable { .. })
            if !backend.is_late() && !exists(backend, names, number)? =>
        {
            tracing::warn!(group = %names, file = %name, "what is left of a checkpoint that was never completed is replaced");
            block_on(backend.delete(name))?;
            create(backend, name, content)
        }
        other => other,
    }
}

/// The checkpoint of an image that is at its end.
pub(crate) fn encode(place: CheckpointPlace, previous: [u8; 32], image: &GroupImage) -> EncodedCheckpoint {
    EncodedCheckpoint::new(place, previous, image.state(), &image.parts().to_checkpoint())
}

/// Whoever makes a checkpoint makes the same bytes: what is there already, or came to be there in spite of an error, is ours.
fn create(backend: &dyn Backend, name: &ObjectName, content: Bytes) -> Result<()> {
    let error = match block_on(backend.create(name, content.clone())) {
        Ok(Created::New) => return Ok(()),
        Ok(Created::AlreadyExists) => None,
        Err(error) => Some(error),
    };
    match (block_on(backend.get(name, content.len() as u64)), error) {
        (Ok(Some(found)), _) if found == content => block_on(backend.sync(name)),
        (_, Some(error)) | (Err(error), None) => Err(error),
        (Ok(_), None) => {
            let why = "it is not the checkpoint that the ledger's records give".to_owned();
            Err(StoreError::Damaged { path: name.as_str().into(), why })
        }
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
pub(crate) mod tests;
