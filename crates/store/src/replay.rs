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
use farside_ledger::{
    BATCH_SLOTS, Body, CheckpointPlace, DecodeError, PackId, RECORD_BYTES_MAX, Record, State, decode_object, run_of,
};
use farside_region::{GroupId, LedgerPosition, RecordDigest, Slot, Term, mutation};

#[cfg(test)]
use crate::backend::counting::SideBySide;
use crate::backend::{Backend, block_on, list_all};
use crate::bound;
use crate::checkpoint::{self, Newest};
use crate::error::{Result, StoreError};
use crate::image::{GroupImage, PartRuns};
use crate::index::PartNo;
use crate::liveness::{Part, Parts};
use crate::names::{GroupNames, GroupObject, SLOTS_PER_FOLDER};
use crate::segments::Segments;

/// Records read ahead at once.
const BATCH: usize = 256;
/// Bound runs read ahead at once: each may take as many bytes as an object of the ledger, and few do.
const BOUND_RUNS: u64 = 16;
/// Footers read ahead at once; the largest take megabytes.
const FOOTERS: usize = 32;
/// Bytes of records read ahead, at most, unless one alone has more: in memory they take many times that.
const BATCH_BYTES: u64 = 1 << 20;
/// Threads that read, whatever processors there are: a cold disk is waited for most of the time.
const THREADS_MAX: usize = 8;
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
    by_bound: ByBound,
}

/// What a replay went by beside the records themselves.
#[derive(Debug, Default)]
struct ByBound {
    /// Any bound run.
    any: bool,
    /// Where the last one ends, if no record that follows it was read.
    unconfirmed: Option<LedgerPosition>,
}

/// What a replay has come to with a record.
pub(crate) struct Reached<'r> {
    pub(crate) image: &'r GroupImage,
    pub(crate) record: &'r Record,
    /// Its run is bound.
    pub(crate) is_bound: bool,
}

/// The records of one object.
pub(crate) type Records = Vec<(Record, RecordDigest)>;

impl Replayed {
    /// A ledger in which nothing is out of order.
    pub(crate) fn whole(image: GroupImage) -> Self {
        Self { image, torn: None, strays: Vec::new(), by_bound: ByBound::default() }
    }

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
    /// The first slots of bound runs.
    bound: BTreeSet<u64>,
    /// Whether they are read.
    reads_bound: bool,
    /// Bytes of records that are longer than most.
    long: BTreeMap<u64, u64>,
}

impl Slots {
    /// All of them.
    pub(crate) fn list(backend: &dyn Backend, names: &GroupNames) -> Result<Self> {
        let mut slots = Self::default();
        slots.add(backend, names, &names.ledger())?;
        Ok(slots)
    }

    /// Those from a slot on, and the newest before it if it is not there; of older ones some. `reads_bound`: for who reads bound runs.
    pub(crate) fn list_from(backend: &dyn Backend, names: &GroupNames, slot: u64, reads_bound: bool) -> Result<Self> {
        let mut slots = Self { reads_bound, ..Self::default() };
        // A cold disk takes its time for each file that is looked at; a service says all in one answer.
        let by_names = reads_bound && backend.requests_at_once().is_none();
        let folders = block_on(backend.folders(&names.ledger()))?;
        let folders: BTreeSet<u64> = folders.iter().filter_map(|folder| folder.parse().ok()).collect();
        let first = folders.range(..=slot / SLOTS_PER_FOLDER).next_back().copied().unwrap_or(0);
        for &folder in folders.range(first..) {
            let below = names.ledger_folder(folder);
            // Nobody reads those before the slot, but perhaps the newest of them.
            if by_names || folder < slot.saturating_add(1) / SLOTS_PER_FOLDER {
                block_on(backend.names(&below))?.iter().for_each(|name| slots.add_name(names, name));
            } else {
                slots.add(backend, names, &below)?;
            }
        }
        if by_names {
            let alone = slots.records.range(slot..).filter(|&&slot| !slots.is_read_as_one(run_of(Slot(slot)).0));
            for slot in alone.copied().collect::<Vec<_>>() {
                let bytes = block_on(backend.size(&names.record(Slot(slot))))?.unwrap_or(0);
                slots.add_bytes(slot, bytes);
            }
        }
        Ok(slots)
    }

    fn add_bytes(&mut self, slot: u64, bytes: u64) {
        if bytes > BATCH_BYTES / BATCH as u64 {
            self.long.insert(slot, bytes);
        }
    }

    fn add_name(&mut self, names: &GroupNames, name: &crate::ObjectName) {
        match names.parse(name) {
            Some(GroupObject::Record(slot)) => drop(self.records.insert(slot.0)),
            Some(GroupObject::RecordVoid(slot)) => drop(self.voids.insert(slot.0)),
            Some(GroupObject::BoundRun(first)) => drop(self.bound.insert(first.0)),
            _ => {}
        }
    }

    fn add(&mut self, backend: &dyn Backend, names: &GroupNames, below: &crate::ObjectName) -> Result<()> {
        list_all(backend, Some(below), |listed| {
            self.add_name(names, &listed.name);
            if let Some(GroupObject::Record(slot)) = names.parse(&listed.name) {
                self.add_bytes(slot.0, listed.bytes);
            }
        })
    }

    /// Whether a run is read as one: it is bound, and no record of it was replaced.
    fn is_read_as_one(&self, first: u64) -> bool {
        self.reads_bound
            && self.bound.contains(&first)
            && self.voids.range(first..first.saturating_add(BATCH_SLOTS)).next().is_none()
    }

    /// The first slots of bound runs.
    pub(crate) fn bound_runs(&self) -> impl Iterator<Item = Slot> + '_ {
        self.bound.iter().copied().map(Slot)
    }

    /// If a run begins here that is read as one: the first slots of those that are read at once.
    fn bound_batch(&self, from: u64) -> Vec<u64> {
        let runs = (0..BOUND_RUNS).map(|run| from.saturating_add(run * BATCH_SLOTS));
        runs.take_while(|&first| run_of(Slot(first)).0 == first && self.is_read_as_one(first)).collect()
    }

    /// Objects from this slot on that are read at once, up to the next run that is read as one.
    fn batch(&self, from: u64) -> Vec<u64> {
        let of = |slots: &BTreeSet<u64>| slots.range(from..).take(BATCH).copied().collect::<BTreeSet<u64>>();
        let end = self.bound.range(from..).find(|&&first| self.is_read_as_one(first)).copied().unwrap_or(u64::MAX);
        let mut bytes = 0;
        let mut batch = Vec::new();
        for &slot in of(&self.records).union(&of(&self.voids)).take(BATCH) {
            // What is missing before it is met all the same.
            if slot >= end && !batch.is_empty() {
                break;
            }
            bytes += self.long.get(&slot).copied().unwrap_or(0);
            if bytes > BATCH_BYTES && !batch.is_empty() {
                break;
            }
            batch.push(slot);
        }
        batch
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
    mut reached: impl FnMut(Reached<'_>),
) -> Result<Replayed> {
    replay_by(backend, names, group, false, &mut reached)
}

/// The same for a reader, by bound runs as far as the records confirm them. What is torn in a run that is bound is not seen.
pub(crate) fn replay_for_reading(backend: &dyn Backend, names: &GroupNames, group: GroupId) -> Result<Replayed> {
    let replayed = replay_by(backend, names, group, true, &mut |_| {})?;
    let is_confirmed = || replayed.by_bound.unconfirmed.map_or(Ok(true), |said| is_in_ledger(backend, names, said));
    if replayed.by_bound.any && (replayed.torn.is_some() || !is_confirmed()?) {
        tracing::warn!(group = %names, "bound runs do not fit the ledger's records, which are read one by one");
        return replay_by(backend, names, group, false, &mut |_| {});
    }
    Ok(replayed)
}

/// Whether a record lies in the ledger, in its slot or in a batch before it, and was not replaced.
pub(crate) fn is_in_ledger(backend: &dyn Backend, names: &GroupNames, said: LedgerPosition) -> Result<bool> {
    if mutation::on(bound::UNCONFIRMED) {
        return Ok(true);
    }
    let found = find_record(backend, names, said.slot)?;
    let is_there = found.is_ok_and(|(_, digest)| digest == said.digest);
    Ok(is_there && block_on(backend.size(&names.record_void(said.slot)))?.is_none())
}

fn replay_by(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    by_bound_runs: bool,
    reached: &mut dyn FnMut(Reached<'_>),
) -> Result<Replayed> {
    loop {
        let roots = checkpoint::list(backend, names)?;
        let newest = roots.last().map(|newest| CheckpointPlace { number: *newest, slots: checkpoint::span() });
        let last = newest.map_or(0, |newest| newest.end().map_or(u64::MAX, |end| end.0) - 1);
        let mut slots = Slots::list_from(backend, names, last, by_bound_runs)?;
        let mut newest = checkpoint::newest(backend, names, group, &roots, &slots)?;
        if !newest.unusable.is_empty() {
            slots = Slots { reads_bound: by_bound_runs, ..Slots::list(backend, names)? };
            newest = checkpoint::newest(backend, names, group, &roots, &slots)?;
        }
        let Newest { image, mut unusable } = newest;
        let begun = image.state().next_slot();
        let mut replayed = replay_from(backend, names, image, &slots, reached)?;
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

/// Replays a ledger from its first slot on, whatever checkpoints there are.
pub(crate) fn replay_all_slots(
    backend: &dyn Backend,
    names: &GroupNames,
    group: GroupId,
    mut reached: impl FnMut(Reached<'_>),
) -> Result<Replayed> {
    replay_from(backend, names, GroupImage::new(group), &Slots::list(backend, names)?, &mut reached)
}

fn replay_from(
    backend: &dyn Backend,
    names: &GroupNames,
    mut image: GroupImage,
    slots: &Slots,
    reached: &mut dyn FnMut(Reached<'_>),
) -> Result<Replayed> {
    // A stray file may name any slot: what is missing before it ends the replay, so nothing is made of its number.
    let mut from = image.state().next_slot().0;
    let (mut strays, mut by_bound) = (Vec::new(), ByBound::default());
    loop {
        let firsts = slots.bound_batch(image.state().next_slot().0);
        let read = parallel(backend, &firsts, |&first| bound::read(backend, names, Slot(first)));
        for (first, read) in firsts.iter().copied().map(Slot).zip(read) {
            by_bound.any = true;
            match read?.and_then(|records| following(&image, records)) {
                Ok(records) => records.iter().for_each(|(record, digest)| drop(image.replay(record, *digest))),
                // The records are read instead, and say what is wrong.
                Err(unusable) => {
                    tracing::warn!(group = %names, object = %names.bound_run(first), why = %unusable, "a bound run is of no use");
                    let torn = Some(unusable.at(names, first));
                    return Ok(Replayed { image, torn, strays, by_bound });
                }
            }
            (by_bound.unconfirmed, from) = (image.state().position(), image.state().next_slot().0);
        }
        if !firsts.is_empty() {
            continue;
        }
        let batch = slots.batch(from);
        let Some(last) = batch.last() else { return Ok(Replayed { image, torn: None, strays, by_bound }) };
        from = last.saturating_add(1);
        let read = parallel(backend, &batch, |&slot| read_slot(backend, names, Slot(slot), slots.voids.contains(&slot)));
        for (slot, read) in batch.into_iter().map(Slot).zip(read) {
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
                match found.and_then(|records| following(&image, records)) {
                    Ok(records) => {
                        by_bound.unconfirmed = None;
                        for (record, digest) in &records {
                            image.replay(record, *digest);
                            let is_bound = slots.bound.contains(&run_of(record.slot).0);
                            reached(Reached { image: &image, record, is_bound });
                        }
                        if slot > next {
                            read = Some(read_slot(backend, names, slot, slots.voids.contains(&slot.0)));
                        }
                    }
                    Err(unusable) => {
                        let torn = unusable.at(names, next);
                        tracing::error!(group = %names, slot = %next, why = %torn.why, "a ledger record does not verify");
                        return Ok(Replayed { image, torn: Some(torn), strays, by_bound });
                    }
                }
            }
        }
    }
}

/// Records, if they are the next of a ledger.
pub(crate) fn following(image: &GroupImage, records: Records) -> Result<Records, Unusable> {
    match image.state().follows(&records[0].0) {
        Ok(()) => Ok(records),
        Err(why) => Err(Unusable::damaged(why.to_string())),
    }
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
pub(crate) fn read_slot(
    backend: &dyn Backend,
    names: &GroupNames,
    slot: Slot,
    replaced: bool,
) -> Result<Result<Records, Unusable>> {
    let bytes = get(backend, &names.record(slot), RECORD_BYTES_MAX as u64)?;
    let found = bytes.as_ref().map_or_else(|| Err(missing()), decode);
    if !replaced {
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
/// Most lie in the nearest object, so that is looked for further and further away.
pub(crate) fn find_record(
    backend: &dyn Backend,
    names: &GroupNames,
    slot: Slot,
) -> Result<Result<(Record, RecordDigest), Unusable>> {
    let (first, mut end, mut asked) = (run_of(slot).0, slot.0 + 1, 1);
    while end > first {
        let begin = end.saturating_sub(asked).max(first);
        let slots: Vec<u64> = (begin..end).collect();
        let found = parallel(backend, &slots, |&slot| get(backend, &names.record(Slot(slot)), RECORD_BYTES_MAX as u64));
        for found in found.into_iter().rev() {
            if let Some(found) = found? {
                let of_slot = |records: Records| records.into_iter().find(|(record, _)| record.slot == slot);
                return Ok(decode(&found).and_then(|records| of_slot(records).ok_or_else(missing)));
            }
        }
        (end, asked) = (begin, 16 * asked);
    }
    Ok(Err(missing()))
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

/// Maps a slice with several threads, which read from a backend; answers come in order.
pub(crate) fn parallel<T: Sync, R: Send>(backend: &dyn Backend, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = match backend.requests_at_once() {
        None => THREADS_MAX.min(items.len().div_ceil(8)).max(1),
        Some(requests) => requests.min(items.len()).max(1),
    };
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
struct SideBySide;

#[cfg(not(test))]
impl SideBySide {
    fn begin() -> Self {
        Self
    }

    fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        work()
    }

    fn end(self) {}
}
