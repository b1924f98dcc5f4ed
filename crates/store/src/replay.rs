//! Reading a group from a store: its newest checkpoint and the ledger from there to the highest existing slot, then the footers
//! of what is left.
//!
//! Records and footers are read by several threads and applied in order by one. Invariant: nothing is believed that does not
//! follow by digest from slot 0, or from a checkpoint that whoever wrote it had reached from there; replay stops before the first
//! slot that does not, and says so ([`Torn`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use bytes::Bytes;
use farside_ledger::{Body, CheckpointPlace, DecodeError, PackId, RECORD_BYTES_MAX, Record, State, decode_object, run_of};
use farside_region::{GroupId, RecordDigest, Slot, Term};

use crate::ahead::{Ahead, BYTES_OF_MOST};
#[cfg(test)]
use crate::backend::counting::SideBySide;
use crate::backend::{Backend, block_on, list_all};
use crate::checkpoint::{self, Early, Newest};
use crate::error::{Result, StoreError};
use crate::image::{GroupImage, PartRuns};
use crate::index::PartNo;
use crate::liveness::{Part, Parts};
use crate::names::{GroupNames, GroupObject, SLOTS_PER_FOLDER};
use crate::repeats::gather;
use crate::segments::Segments;

/// Footers read ahead at once; the largest take megabytes.
const FOOTERS: usize = 32;
/// Threads that read, whatever processors there are: a cold disk is waited for most of the time.
const THREADS_MAX: usize = 16;
/// Threads that wait for a disk at once.
const WAITING_MAX: usize = 16;

/// A slot that does not verify. Replay ends before it; nothing may be appended, pruned or swept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The slot.
    pub slot: Slot,
    /// Its object.
    pub file: String,
    /// What is wrong.
    pub why: String,
    /// Not damaged: a newer Farside wrote it. Never to be repaired away.
    pub newer: bool,
    /// Not damaged, but gone with all that follow: files are there which say that the ledger went so far at least.
    pub lost_claim: Option<Term>,
    /// A checkpoint stands for this slot and cannot be used. What it says may come back, so the slot is never to be given up.
    pub checkpoint: Option<String>,
}

impl Torn {
    /// As an error, for a group.
    pub fn error(&self, group: &GroupNames) -> StoreError {
        let remedy = match self {
            Self { newer: true, .. } => "use a newer Farside",
            Self { checkpoint: Some(_), .. } => {
                "put the checkpoint back from a copy of the store; nothing else is to be given up for it"
            }
            Self { lost_claim: Some(_), .. } => {
                "put the ledger's newest records back from a copy of the store, or give them up with `farside store repair`"
            }
            _ => "put the file back from a copy of the store, or mend or void it with `farside store repair`",
        };
        let (group, slot, file, why) = (group.to_string(), self.slot, self.file.clone(), self.why.clone());
        StoreError::LedgerTorn { group, slot, file, why, remedy }
    }
}

/// Why a slot's bytes are not a record that we can replay.
#[derive(Clone, Debug)]
pub(crate) struct Unusable {
    why: String,
    newer: bool,
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl Unusable {
    pub(crate) fn damaged(why: String) -> Self {
        Self { why, newer: false }
    }

    pub(crate) fn at(self, names: &GroupNames, slot: Slot) -> Torn {
        Torn { slot, file: names.record(slot).to_string(), why: self.why, newer: self.newer, lost_claim: None, checkpoint: None }
    }
}

/// A term is the slot of an accepted claim: files of one above the head prove that the ledger has lost its newest records.
/// What they published is not to be judged, let alone swept, by what is left. So do those of a merge, which says how far the ledger
/// went when it was begun.
pub(crate) fn lost_claim(names: &GroupNames, state: &State, terms: impl Iterator<Item = Term>) -> Option<Torn> {
    let slot = state.next_slot();
    let last_of = |term: Term| match term.merge() {
        Some(merge) => merge.since().0.checked_sub(1),
        None => Some(term.0),
    };
    let (last, term) = terms.filter_map(|term| Some((last_of(term)?, term))).max().filter(|(last, _)| *last >= slot.0)?;
    let proof = match term.merge() {
        Some(merge) => format!("files of a merge that was begun when slot {last} was taken ({merge}) exist"),
        None => format!("files of a claim in slot {last} exist"),
    };
    Some(lost_end(names, slot, last, &proof))
}

/// A pack is put for the slot after the head: one of a slot above that proves the same.
pub(crate) fn lost_pack(names: &GroupNames, state: &State, pack: PackId) -> Torn {
    let beyond = pack.slot();
    lost_end(names, state.next_slot(), beyond.0 - 1, &format!("a pack that was put for slot {beyond} exists"))
}

/// The ledger went to `last` at least, and ends before `slot`.
fn lost_end(names: &GroupNames, slot: Slot, last: u64, proof: &str) -> Torn {
    let file = names.record(slot).to_string();
    let why = format!("it is missing, while {proof}: the ledger has lost its newest records");
    tracing::error!(group = %names, %slot, %last, "the ledger has lost its newest records");
    Torn { slot, file, why, newer: false, lost_claim: Some(Term(last)), checkpoint: None }
}

impl From<DecodeError> for Unusable {
    fn from(error: DecodeError) -> Self {
        let newer = matches!(error, DecodeError::Version(_) | DecodeError::Kind(_) | DecodeError::Flags(_));
        Self { why: error.to_string(), newer }
    }
}

/// A group's ledger, replayed; its parts are not indexed yet.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) image: GroupImage,
    pub(crate) torn: Option<Torn>,
    /// Objects in slots that a batch before them takes: nobody's.
    pub(crate) strays: Vec<Slot>,
    /// Objects whose own records are whole, and what they repeat is not; of a replay of all slots.
    pub(crate) spoiled: BTreeSet<Slot>,
}

/// The records of one object.
pub(crate) type Records = Vec<(Record, RecordDigest)>;

/// What lies in a slot, or what is wrong with it.
pub(crate) type ReadSlot = Result<Records, Unusable>;

impl Replayed {
    /// Where replay stopped, a checkpoint stands for the slot: without it nobody knows what was there, and nothing goes on.
    fn blame(&mut self, names: &GroupNames, unusable: &[checkpoint::Unusable]) {
        let slot = self.torn.as_ref().map_or(self.image.state().next_slot(), |torn| torn.slot);
        let Some(bad) = unusable.iter().find(|bad| bad.reaches(slot)) else { return };
        let missing = || Unusable::damaged("it is missing".to_owned()).at(names, slot);
        let torn = self.torn.get_or_insert_with(missing);
        torn.why = format!("{}; {}, which stands for it, cannot be used: {}", torn.why, bad.file, bad.why);
        torn.newer |= bad.newer;
        torn.checkpoint = Some(bad.file.clone());
    }
}

/// Which slots exist.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) records: BTreeSet<u64>,
    pub(crate) voids: BTreeSet<u64>,
    /// Bytes of records that are longer than most.
    long: BTreeMap<u64, u64>,
    /// Which of them are longer was not looked at.
    is_unsized: bool,
}

impl Slots {
    /// All of them.
    pub(crate) fn list(backend: &dyn Backend, names: &GroupNames) -> Result<Self> {
        let mut slots = Self::default();
        slots.add(backend, names, &names.ledger())?;
        Ok(slots)
    }

    /// Those from a slot on, and the newest before it if it is not there; of older ones some.
    pub(crate) fn list_from(backend: &dyn Backend, names: &GroupNames, slot: u64) -> Result<Self> {
        let is_near = backend.requests_at_once().is_none();
        let mut slots = Self { is_unsized: is_near, ..Self::default() };
        let folders = block_on(backend.folders(&names.ledger()))?;
        let folders: BTreeSet<u64> = folders.iter().filter_map(|folder| folder.parse().ok()).collect();
        let mut first = folders.range(..=slot / SLOTS_PER_FOLDER).next_back().copied().unwrap_or(0);
        // Most often it is the last of its folder, and the newest that a checkpoint covers: names of thousands for the sake of one.
        if slot % SLOTS_PER_FOLDER == SLOTS_PER_FOLDER - 1 && slots.look_at(backend, names, Slot(slot))? {
            first = slot / SLOTS_PER_FOLDER + 1;
        }
        for &folder in folders.range(first..) {
            let below = names.ledger_folder(folder);
            // Nobody reads those before the slot, but perhaps the newest of them. And a directory has to look at each for more than its name.
            if is_near || folder < slot.saturating_add(1) / SLOTS_PER_FOLDER {
                block_on(backend.names(&below))?.iter().for_each(|name| slots.add_name(names, name));
            } else {
                slots.add(backend, names, &below)?;
            }
        }
        Ok(slots)
    }

    /// Whether a record has an object of its own.
    fn look_at(&mut self, backend: &dyn Backend, names: &GroupNames, slot: Slot) -> Result<bool> {
        if block_on(backend.size(&names.record(slot)))?.is_none() {
            return Ok(false);
        }
        self.records.insert(slot.0);
        if block_on(backend.size(&names.record_void(slot)))?.is_some() {
            self.voids.insert(slot.0);
        }
        Ok(true)
    }

    fn add_name(&mut self, names: &GroupNames, name: &crate::ObjectName) {
        match names.parse(name) {
            Some(GroupObject::Record(slot)) => drop(self.records.insert(slot.0)),
            Some(GroupObject::RecordVoid(slot)) => drop(self.voids.insert(slot.0)),
            _ => {}
        }
    }

    fn add(&mut self, backend: &dyn Backend, names: &GroupNames, below: &crate::ObjectName) -> Result<()> {
        list_all(backend, Some(below), |listed| {
            self.add_name(names, &listed.name);
            if let Some(GroupObject::Record(slot)) = names.parse(&listed.name)
                && listed.bytes > BYTES_OF_MOST
            {
                self.long.insert(slot.0, listed.bytes);
            }
        })
    }

    /// Those from a slot on in which anything lies, ascending.
    pub(crate) fn from(&self, slot: u64) -> Vec<u64> {
        let (mut records, mut voids) = (self.records.range(slot..).peekable(), self.voids.range(slot..).peekable());
        let mut all = Vec::with_capacity(records.size_hint().0);
        while let Some(next) = records.peek().copied().into_iter().chain(voids.peek().copied()).min() {
            records.next_if_eq(&next);
            voids.next_if_eq(&next);
            all.push(*next);
        }
        all
    }

    /// How long a record is; `None`: nobody looked.
    pub(crate) fn bytes_of(&self, slot: u64) -> Option<u64> {
        if self.is_unsized { None } else { Some(self.long.get(&slot).copied().unwrap_or(BYTES_OF_MOST)) }
    }

    /// The slot after the highest that an object lies in. A batch may take some more.
    pub(crate) fn end(&self) -> u64 {
        self.records.last().max(self.voids.last()).map_or(0, |last| last.saturating_add(1))
    }
}

/// Replays a ledger from its newest checkpoint on. `reached` sees what every record gave.
///
/// Only names from there on are listed. What is given up meanwhile is covered by a checkpoint that came meanwhile, which is looked for
/// last: then all begins anew.
pub(crate) fn replay(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    reached: impl FnMut(&GroupImage),
) -> Result<Replayed> {
    replay_by(backend, names, group, false, reached)
}

/// The same for who only opens a point: what a few objects repeat is taken for the records of all others, and damage of those goes unseen.
pub(crate) fn replay_to_open(backend: &dyn Backend, names: &GroupNames, group: GroupId) -> Result<Replayed> {
    replay_by(backend, names, group, true, |_| {})
}

fn replay_by(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    mut is_by_repeats: bool,
    mut reached: impl FnMut(&GroupImage),
) -> Result<Replayed> {
    loop {
        let roots = checkpoint::list(backend, names)?;
        let newest = roots.last().map(|newest| CheckpointPlace { number: *newest, slots: checkpoint::span() });
        let last = newest.map_or(0, |newest| newest.end().map_or(u64::MAX, |end| end.0) - 1);
        let from = newest.map_or(0, |_| last.saturating_add(1));
        // What takes longest begins first.
        let (found, early) = Early::during(backend, names, group, newest, || -> Result<_> {
            let slots = Slots::list_from(backend, names, last)?;
            // What was replaced is judged with what lies beside it.
            is_by_repeats &= slots.voids.range(from..).next().is_none();
            let gathered = if is_by_repeats { gather(backend, names, &slots, from, BTreeMap::new())? } else { Vec::new() };
            Ok((slots, gathered))
        });
        let (slots, gathered) = found?;
        let below = gathered.first().map(|(first, _)| first.slot.0);
        // Most often it is of use, and what comes after it is read while it is.
        let mut ahead = Ahead::new(backend, names, &slots, from);
        if let Some(below) = below {
            ahead = ahead.below(below);
        }
        let replayed = ahead.during(|ahead| {
            let Newest { image, unusable } = checkpoint::newest(backend, names, group, &roots, &slots, early)?;
            if !unusable.is_empty() {
                return Ok(None);
            }
            let begun = image.state().next_slot();
            Ok(Some((begun, replay_ahead(backend, names, image, &slots, ahead, &mut reached)?, unusable)))
        })?;
        let (begun, mut replayed, mut unusable) = match replayed {
            Some(replayed) => replayed,
            None => {
                let slots = Slots::list(backend, names)?;
                let Newest { image, unusable } = checkpoint::newest(backend, names, group, &roots, &slots, None)?;
                let begun = image.state().next_slot();
                (begun, replay_from(backend, names, image, &slots, &mut reached)?, unusable)
            }
        };
        if unusable.is_empty() && replayed.torn.is_none() && !gathered.is_empty() {
            if replayed.image.state().follows(&gathered[0].0).is_err() {
                is_by_repeats = false;
                continue;
            }
            for (record, digest) in &gathered {
                replayed.image.replay(record, *digest);
                reached(&replayed.image);
            }
        }
        // One that came while we read: records may have gone under us, or been put by somebody who came too late.
        let (mut came, covering) = (false, |slot| CheckpointPlace::covering(slot, checkpoint::span()));
        let places =
            BTreeMap::from([begun, replayed.image.state().next_slot()].map(|slot| (covering(slot).number, covering(slot))));
        for (number, place) in places {
            if unusable.iter().any(|bad| bad.number == number) {
                continue;
            }
            let last = place.end().and_then(|end| replayed.image.state().digest_at(Slot(end.0 - 1)));
            match checkpoint::look(backend, names, group, number)? {
                Some(Ok((root, _))) => came |= last != Some(root.last),
                Some(Err(bad)) => unusable.push(bad),
                None => {}
            }
        }
        if came {
            continue;
        }
        replayed.blame(names, &unusable);
        return Ok(replayed);
    }
}

/// Replays a ledger from its first slot on, whatever checkpoints there are; or from such an image on, where what it covers is gone.
pub(crate) fn replay_all_slots(
    backend: &dyn Backend,
    names: &GroupNames,
    image: GroupImage,
    mut reached: impl FnMut(&GroupImage),
) -> Result<Replayed> {
    let slots = Slots::list(backend, names)?;
    let ahead = Ahead::new(backend, names, &slots, image.state().next_slot().0).looking_at_repeats();
    ahead.during(|ahead| {
        let replayed = replay_ahead(backend, names, image, &slots, ahead, &mut reached)?;
        Ok(Replayed { spoiled: ahead.spoiled(), ..replayed })
    })
}

fn replay_from(
    backend: &dyn Backend,
    names: &GroupNames,
    image: GroupImage,
    slots: &Slots,
    reached: &mut dyn FnMut(&GroupImage),
) -> Result<Replayed> {
    let ahead = Ahead::new(backend, names, slots, image.state().next_slot().0);
    ahead.during(|ahead| replay_ahead(backend, names, image, slots, ahead, reached))
}

/// `ahead`: what lies in the slots from the image's next one on.
fn replay_ahead(
    backend: &dyn Backend,
    names: &GroupNames,
    mut image: GroupImage,
    slots: &Slots,
    ahead: &Ahead<'_>,
    reached: &mut dyn FnMut(&GroupImage),
) -> Result<Replayed> {
    // A stray file may name any slot: what is missing before it ends the replay, so nothing is made of its number.
    let mut strays = Vec::new();
    while let Some((slot, read)) = ahead.take() {
        let mut read = Some(read);
        while let Some(ahead) = read.take() {
            let next = image.state().next_slot();
            // Whoever put the batch decided for all its slots.
            if slot < next {
                strays.push(slot);
                continue;
            }
            // What no listing gave may be there all the same, or be what keeps it from being listed.
            let found = if slot > next { read_slot(backend, names, next, false)? } else { ahead? };
            let follows = |records: Records| match image.state().follows(&records[0].0) {
                Ok(()) => Ok(records),
                Err(why) => Err(Unusable::damaged(why.to_string())),
            };
            match found.and_then(follows) {
                Ok(records) => {
                    for (record, digest) in &records {
                        image.replay(record, *digest);
                        reached(&image);
                    }
                    if slot > next {
                        read = Some(read_slot(backend, names, slot, slots.voids.contains(&slot.0)));
                    }
                }
                Err(unusable) => {
                    let torn = unusable.at(names, next);
                    tracing::error!(group = %names, slot = %next, why = %torn.why, "a ledger record does not verify");
                    return Ok(Replayed { image, torn: Some(torn), strays, spoiled: BTreeSet::new() });
                }
            }
        }
    }
    Ok(Replayed { image, torn: None, strays, spoiled: BTreeSet::new() })
}

fn missing() -> Unusable {
    Unusable::damaged("the file is missing, and later ones exist".to_owned())
}

/// Lays all parts that are not in the head images yet over them; says which of them are damaged.
pub(crate) fn index_all(image: &mut GroupImage, segments: &Segments) -> Result<Vec<PartNo>> {
    let mut damaged = Vec::new();
    let parts = image.unindexed();
    for batch in parts.chunks(FOOTERS) {
        let read = parallel(&*segments.backend, batch, |(_, part)| runs_of_part(image, segments, part));
        for ((no, _), runs) in batch.iter().zip(read) {
            let runs = runs?;
            if runs.is_damaged() {
                damaged.push(*no);
            }
            image.index(*no, &runs);
        }
    }
    Ok(damaged)
}

/// What a part holds, from its segment.
pub(crate) fn runs_of_part(image: &GroupImage, segments: &Segments, part: &Part) -> Result<PartRuns> {
    let volume = image.state().volume(part.name.layer.volume).expect("a part's volume was claimed");
    segments.runs(&volume.meta().name, part, Parts::told_by(image.state(), part))
}

/// The records of the object in a slot, or what is wrong with the slot.
pub(crate) fn read_slot(backend: &dyn Backend, names: &GroupNames, slot: Slot, replaced: bool) -> Result<ReadSlot> {
    read_and_see(backend, names, slot, replaced, |_| {})
}

/// The same; `see`: objects whose own records are whole, and stand for themselves.
pub(crate) fn read_and_see(
    backend: &dyn Backend,
    names: &GroupNames,
    slot: Slot,
    replaced: bool,
    see: impl Fn(&Bytes),
) -> Result<ReadSlot> {
    let bytes = get(backend, &names.record(slot), RECORD_BYTES_MAX as u64)?;
    let found = bytes.as_ref().map_or_else(|| Err(missing()), decode);
    if !replaced {
        if let (Ok(_), Some(Ok(bytes))) = (&found, &bytes) {
            see(bytes);
        }
        return Ok(found);
    }
    let name = names.record_void(slot);
    let Some(Ok(void)) = get(backend, &name, RECORD_BYTES_MAX as u64)? else {
        return Ok(Err(Unusable::damaged(format!("its replacement {name} cannot be read"))));
    };
    let torn = match bytes {
        Some(Err(why)) => return Ok(Err(Unusable::damaged(format!("cannot be held against its replacement: {why}")))),
        Some(Ok(bytes)) => bytes,
        None => Bytes::new(),
    };
    Ok(match Record::decode(&void) {
        Err(error) => {
            let unusable = Unusable::from(error);
            Err(Unusable { why: format!("its replacement {name}: {}", unusable.why), ..unusable })
        }
        Ok((record, digest)) => match &record.body {
            Body::TornVoid(v) if v.torn_digest == *blake3::hash(&torn).as_bytes() && v.torn_bytes == torn.len() as u64 => {
                Ok(vec![(record, digest)])
            }
            _ => Err(Unusable::damaged(format!("its replacement {name} replaces other bytes than those in the slot"))),
        },
    })
}

/// The record in a slot, of an object of its own or of a batch that begins before it in its run, or what is wrong with the object.
pub(crate) fn find_record(
    backend: &dyn Backend,
    names: &GroupNames,
    slot: Slot,
) -> Result<Result<(Record, RecordDigest), Unusable>> {
    let of_slot = |records: Records| records.into_iter().find(|(record, _)| record.slot == slot);
    let found = find_object(backend, names, slot)?.map(|found| decode(&found));
    Ok(found.unwrap_or_else(|| Err(missing())).and_then(|records| of_slot(records).ok_or_else(missing)))
}

/// The object that takes a slot, unless what lies nearest before it in its run does not reach so far.
/// Most lie in the nearest object, so that is looked for further and further away.
pub(crate) fn find_object(backend: &dyn Backend, names: &GroupNames, slot: Slot) -> Result<Option<Result<Bytes, String>>> {
    let (first, mut end, mut asked) = (run_of(slot).0, slot.0 + 1, 1);
    while end > first {
        let begin = end.saturating_sub(asked).max(first);
        let slots: Vec<u64> = (begin..end).collect();
        let found = parallel(backend, &slots, |&slot| get(backend, &names.record(Slot(slot)), RECORD_BYTES_MAX as u64));
        for found in found.into_iter().rev() {
            if let Some(found) = found? {
                return Ok(Some(found));
            }
        }
        (end, asked) = (begin, 16 * asked);
    }
    Ok(None)
}

/// The records of what lies in a slot, or what is wrong with that.
pub(crate) fn decode(bytes: &Result<Bytes, String>) -> Result<Records, Unusable> {
    match bytes {
        Ok(bytes) => decode_object(bytes).map_err(Unusable::from),
        Err(why) => Err(Unusable::damaged(why.clone())),
    }
}

/// An object, or what its medium says is wrong with it.
pub(crate) fn get(backend: &dyn Backend, name: &crate::ObjectName, bytes_max: u64) -> Result<Option<Result<Bytes, String>>> {
    match block_on(backend.get(name, bytes_max)) {
        Ok(found) => Ok(found.map(Ok)),
        Err(StoreError::Damaged { why, .. }) => Ok(Some(Err(why))),
        Err(StoreError::Unreadable { source, .. }) => Ok(Some(Err(format!("it cannot be read: {source}")))),
        Err(error) => Err(error),
    }
}

/// Maps a slice with a thread for each of a few items at once: for work that waits for a disk. Answers come in order.
pub(crate) fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let mut answers = Vec::with_capacity(items.len());
    let side_by_side = SideBySide::begin();
    let work = |item: &T| side_by_side.run(|| work(item));
    for batch in items.chunks(WAITING_MAX) {
        match batch {
            [one] => answers.push(work(one)),
            _ => thread::scope(|scope| {
                let work = &work;
                let waiting: Vec<_> = batch.iter().map(|item| scope.spawn(move || work(item))).collect();
                answers.extend(waiting.into_iter().map(|w| w.join().expect("such a thread does not panic")));
            }),
        }
    }
    side_by_side.end();
    answers
}

/// The same until an answer `ends` it: then no other is begun, and those that were not have no answer.
pub(crate) fn at_once_until<T: Sync, R: Send>(
    items: &[T],
    ends: impl Fn(&R) -> bool + Sync,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let is_over = AtomicBool::new(false);
    let answers = at_once(items, |item| {
        if is_over.load(Ordering::Relaxed) {
            return None;
        }
        let answer = work(item);
        is_over.fetch_or(ends(&answer), Ordering::Relaxed);
        Some(answer)
    });
    answers.into_iter().flatten().collect()
}

/// How many threads read so many objects.
pub(crate) fn threads_for(backend: &dyn Backend, objects: usize) -> usize {
    match backend.requests_at_once() {
        None => THREADS_MAX.min(objects.div_ceil(8)).max(1),
        Some(requests) => requests.min(objects).max(1),
    }
}

/// Maps a slice with several threads, which read from a backend; answers come in order.
pub(crate) fn parallel<T: Sync, R: Send>(backend: &dyn Backend, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = threads_for(backend, items.len());
    if threads == 1 {
        return items.iter().map(work).collect();
    }
    let side_by_side = SideBySide::begin();
    let work = |item: &T| side_by_side.run(|| work(item));
    let share = items.len().div_ceil(threads);
    let answers = thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> =
            items.chunks(share).map(|chunk| scope.spawn(move || chunk.iter().map(work).collect::<Vec<_>>())).collect();
        workers.into_iter().flat_map(|w| w.join().expect("a reading thread does not panic")).collect()
    });
    side_by_side.end();
    answers
}

/// What is counted in tests only.
#[cfg(not(test))]
pub(crate) struct SideBySide;

#[cfg(not(test))]
impl SideBySide {
    pub(crate) fn begin() -> Self {
        Self
    }

    pub(crate) fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        work()
    }

    pub(crate) fn end(self) {}
}
