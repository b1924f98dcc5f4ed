//! One group of an open store, for the thread that owns it: the state that everything is judged by, and the appends.
//!
//! Invariants:
//! - records that are appended together are in the ledger together or not at all;
//! - segments are durable in the store before the record that names them is written, and their footers are the ones named;
//! - whatever the answer to a write was, the state is what replay gives;
//! - files go only after an accepted prune record named them, or by T4, and never while somebody reads; what a merge replaced goes only once a
//!   durable checkpoint covers the merge, and nothing that may stand for it is damaged.
//!
//! Blocking. After an error whose [`StoreError::remedy`] is `Reopen`, drop the store and open it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use farside_keys::Wrapping;
use farside_layer::{Footer, layer_digest};
use farside_ledger::{
    Body, KeptEnd, LayerEntry, PartEntry, Place, Policy, RECORD_BYTES_MAX, Record, State, Verdict, VolumeMeta, room_in_run,
    volume_id,
};
use farside_region::{
    GranuleDigest, GranuleRun, GroupId, KeyId, LayerKey, LedgerPosition, Name, RecordDigest, RegionSet, Slot, Term, VolumeId,
    mutation,
};

use crate::attempt::{Attempt, Draft, Found, dated};
use crate::backend::{Backend, Created, Listed, ObjectName, block_on, list_all};
use crate::checkpoint::{self, Checkpoints};
use crate::error::{Result, StoreError};
use crate::follower::{FollowLook, FollowStage};
use crate::image::{Applied, GroupImage, PartRuns, parts_of};
use crate::index::{Content, PartNo};
use crate::keys::{ClaimedKeys, add_wrapping};
use crate::landing::Landing;
use crate::lazy::LazyPointReader;
use crate::leases::Leases;
use crate::liveness::{Part, PartName};
use crate::locks::Readers;
use crate::names::{GroupNames, GroupObject};
use crate::points::{self, PointInfo};
use crate::reader::PointReader;
use crate::repeats::Repeats;
use crate::replay::{Torn, Unusable, decode, get, index_all, lost_claim, lost_pack, parallel, replay};
use crate::said_once::SaidOnce;
use crate::segments::{FooterFault, Segments, runs_of};
use crate::space::Space;
use crate::spoiled::KnownDamage;
use crate::store::{Shared, random};

/// Unreadable regions of a volume and a layer that are judged one by one.
const UNREADABLE_REGIONS_JUDGED: u64 = 4096;
/// Names of a bucket looked at at once, since records wait for it.
const LISTED_AT_ONCE: usize = 1000;
/// For so long damaged segments are looked at at once whether they are back.
const DAMAGED_LOOK: Duration = Duration::from_millis(500);
/// What no record names, and none can any more, nobody reads. In a bucket it stays for a day all the same, by the service's clock: if the
/// ledger is not what it was, there is time to see it.
const ORPHANS_AFTER_MS: i64 = 24 * 3600 * 1000;

#[path = "merging.rs"]
mod merging;
#[path = "packs.rs"]
mod packs;
#[path = "repair.rs"]
mod repair;
#[path = "sweeping.rs"]
mod sweeping;
#[path = "trimming.rs"]
mod trimming;
#[path = "uploads.rs"]
mod uploads;

use merging::Merging;
#[cfg(test)]
pub(crate) use merging::set_waiting_bytes_least;
pub use repair::{Known, Repair, VoidedRecord};
use sweeping::{Dead, Failing};
pub use uploads::{Upload, Uploaded};

/// A record that is in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where.
    pub position: LedgerPosition,
    /// What replay says about it.
    pub verdict: Verdict,
}

/// What a record is to say, and how long ago that came to be known: its stamp says when that was.
#[derive(Clone, Debug)]
pub struct Dated {
    /// What.
    pub body: Body,
    /// How long ago.
    pub ago: Duration,
}

/// What sweeping did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files deleted.
    pub deleted: usize,
    /// Files that wait because somebody reads, or for another record.
    pub deferred: usize,
}

/// The terms of which there may be segments, by the folders that they would lie in: one request, and one for each volume.
fn terms_of_segments(segments: &Segments) -> Result<Vec<(Name, Term)>> {
    let (backend, names) = (&*segments.backend, &segments.names);
    let volumes: Vec<Name> =
        block_on(backend.folders(&names.segments()))?.iter().filter_map(|volume| volume.parse().ok()).collect();
    let mut terms = Vec::new();
    let found = parallel(backend, &volumes, |volume| block_on(backend.folders(&names.segments_of(volume))));
    for (volume, folders) in volumes.iter().zip(found) {
        terms.extend(folders?.iter().filter_map(|term| term.parse().ok()).map(|term| (volume.clone(), Term(term))));
    }
    Ok(terms)
}

/// Neighbouring granules of one sort in the head image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DigestRun {
    /// In no published layer: never equal to anything.
    Absent {
        /// How many.
        granules: u64,
    },
    /// All zeroes.
    Zero {
        /// How many.
        granules: u64,
    },
    /// Unreadable at the source, or damaged in the store: never equal to anything.
    Unreadable {
        /// How many.
        granules: u64,
    },
    /// Data, one digest per granule.
    Data(Vec<GranuleDigest>),
}

/// Segments in the order in which a bucket lists them, from the one after this on.
#[derive(Clone, Debug, Default)]
struct Unseen(Option<ObjectName>);

/// One group, owned by one thread. [`GroupStore::landing`] is for the others.
#[derive(Debug)]
pub struct GroupStore {
    shared: Arc<Shared>,
    segments: Arc<Segments>,
    landing: Arc<Landing>,
    image: GroupImage,
    /// Damaged parts that can be read again.
    are_back: BTreeSet<PartNo>,
    /// Up to this one it was looked last whether they can.
    damaged_behind: Option<PartNo>,
    torn: Option<Torn>,
    /// A record of ours may lie in this slot without being in the state, for this reason: nothing is changed until the group is
    /// opened again, least of all segments deleted that the record may name.
    uncertain: Option<(Slot, String)>,
    /// Files to delete once nobody reads.
    dead: BTreeMap<PartName, Dead>,
    /// Those of them, in a bucket, that may go: nobody reads them, and nobody will.
    cleared: BTreeSet<PartName>,
    leases: Leases,
    /// When the leases were looked at last.
    looked_at: Option<Instant>,
    deferred_since: Option<Instant>,
    /// When objects of a bucket may be deleted again.
    sweep_at: Option<Instant>,
    failing: Failing,
    /// When its segments may be looked at again.
    list_at: Option<Instant>,
    /// What of a bucket's segments nobody has looked at since the group was opened: those after this one.
    unseen: Option<Unseen>,
    /// Segments that no accepted record names, of which one may still: linked by an append that has not succeeded (yet).
    awaited: BTreeMap<PartName, Name>,
    merging: Merging,
    packs: packs::Packs,
    checkpoints: Checkpoints,
    trimming: trimming::Trimming,
    /// What the next record's object repeats.
    repeats: Repeats,
    known: KnownDamage,
    /// Whether whoever writes has less room than he asks for.
    is_short: bool,
    said_once: SaidOnce,
    /// Whether something is deleted unasked: not by who does not know what was met damaged.
    sweeps: bool,
}

impl GroupStore {
    pub(crate) fn open(shared: Arc<Shared>, names: GroupNames, id: GroupId, known: KnownDamage, sweeps: bool) -> Result<Self> {
        let segments = Arc::new(Segments::telling(Arc::clone(&shared.backend), names, known.met.clone()));
        let backend = &*segments.backend;
        // Before the ledger: a claim that comes meanwhile is in what is replayed.
        let folders = if shared.is_dir { Vec::new() } else { terms_of_segments(&segments)? };
        let mut checkpoints = Checkpoints::default();
        let mut covered = Slot(0);
        let mut said_once = SaidOnce::default();
        let mut replayed = replay(backend, &segments.names, id, |image| {
            said_once.heard(image.state());
            covered = checkpoints.write(backend, &segments.names, image).unwrap_or(covered);
        })?;
        // The last writer may have died between writing and syncing: what we believe from here on must outlive a power cut.
        if let Some(head) = replayed.image.state().head() {
            block_on(segments.backend.sync(&segments.names.record(head)))?;
        }
        checkpoint::sync(backend, &segments.names, replayed.image.begun())?;
        // What that replaced is found where it lies.
        replayed.image.covered(covered);
        said_once.covered(covered.max(replayed.image.begun()));
        let landing = Landing::new(Arc::clone(&shared.staging), shared.is_dir, &segments.names);
        let mut group = Self {
            shared,
            segments,
            landing,
            image: replayed.image,
            are_back: BTreeSet::new(),
            damaged_behind: None,
            torn: replayed.torn,
            uncertain: None,
            dead: BTreeMap::new(),
            cleared: BTreeSet::new(),
            leases: Leases::default(),
            looked_at: None,
            deferred_since: None,
            sweep_at: None,
            failing: Failing::default(),
            list_at: None,
            unseen: None,
            awaited: BTreeMap::new(),
            merging: Merging::default(),
            packs: packs::Packs::default(),
            checkpoints,
            trimming: trimming::Trimming::of(id),
            repeats: Repeats::default(),
            known,
            is_short: false,
            said_once,
            sweeps,
        };
        let mut there = Vec::new();
        if group.torn.is_none() {
            let mut terms = group.landing.terms()?;
            if group.shared.is_dir {
                there = group.list_segments()?;
                terms.extend(there.iter().map(|(part, _)| part.layer.term));
            } else {
                terms.extend(group.believed(folders)?);
            }
            group.torn = lost_claim(&group.segments.names, group.image.state(), terms.into_iter());
            if group.torn.is_none()
                && !group.shared.is_dir
                && let Some(pack) = group.pack_beyond()?
            {
                group.torn = Some(lost_pack(&group.segments.names, group.image.state(), pack));
            }
        }
        let whole = group.torn.is_none();
        group.landing.recover(&group.segments, &group.image, whole)?;
        index_all(&mut group.image, &group.segments)?;
        if group.image.has_unknown() {
            tracing::warn!(group = %group.names(), "no older part of their volumes and none of their older points is pruned until damaged segments come back or are sent again");
        }
        // Before anything is swept.
        group.spoil_what_is_known();
        if whole && group.shared.is_dir {
            group.sort_out(there);
            group.sweep_in_passing();
        } else if whole {
            // A bucket is swept as time goes by: its groups open without that.
            group.unseen = Some(Unseen::default());
            group.begin_packs();
        }
        Ok(group)
    }

    /// Source and group.
    pub fn names(&self) -> &GroupNames {
        &self.segments.names
    }

    /// The replayed ledger.
    pub fn state(&self) -> &State {
        self.image.state()
    }

    /// Head images, parts and their liveness.
    pub fn image(&self) -> &GroupImage {
        &self.image
    }

    /// The slot that does not verify, if there is one: points before it can be restored, and nothing else works.
    pub fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// Where parts land; shared with the threads that write them.
    pub fn landing(&self) -> &Arc<Landing> {
        &self.landing
    }

    /// The file system's space.
    ///
    /// # Errors
    /// [`StoreError::Vanished`], or what the file system says.
    pub fn space(&self) -> Result<Space> {
        self.landing.space()
    }

    /// The digest key, shape and size of a volume.
    ///
    /// # Errors
    /// [`StoreError::UnknownVolume`].
    pub fn volume(&self, volume: VolumeId) -> Result<&VolumeMeta> {
        self.state().volume(volume).map(|v| v.meta()).ok_or(StoreError::UnknownVolume(volume))
    }

    /// Appends a record and says what replay makes of it. Layers must have landed; their parts become segments first. A prune
    /// record's files are deleted later: once another object says it as well, and nobody reads.
    ///
    /// # Errors
    /// Nothing was appended, as far as one can know, and the state is up to date: [`StoreError::Overtaken`] (another writer
    /// took the slot: build anew), [`StoreError::LedgerTorn`], [`StoreError::PartMissing`], [`StoreError::BadPart`],
    /// [`StoreError::Record`], [`StoreError::Full`]; or what the file system says. [`StoreError::BehindCheckpoint`],
    /// [`StoreError::Uncertain`]: the record may be in its slot, and nothing works until the group is opened again.
    pub fn append(&mut self, body: Body) -> Result<Appended> {
        Ok(self.append_all(vec![Dated { body, ago: Duration::ZERO }])?[0])
    }

    /// Appends records as one object, all of them or none, and says what replay makes of each. They must fit one: see
    /// [`GroupStore::room`].
    ///
    /// # Errors
    /// Those of [`GroupStore::append`].
    ///
    /// # Panics
    /// When there are none.
    pub fn append_all(&mut self, said: Vec<Dated>) -> Result<Vec<Appended>> {
        self.usable()?;
        if said.len() as u64 > self.room() {
            let why = format!("{} records do not fit into the {} slots that one object can take now", said.len(), self.room());
            return Err(StoreError::Record(why));
        }
        let packs = self.plan_packs(said.iter().map(|said| &said.body))?;
        let attempt = match packs.is_empty() {
            true => self.attempt(said, None)?,
            false => {
                let places = Dated { body: packs::said_of(&packs), ago: Duration::ZERO };
                self.attempt(said, Some(places))?
            }
        };
        self.put_packs(&packs)?;
        let mut runs = self.adopt(attempt.records.iter().map(|(record, _)| &record.body), &packs::places_in(&packs))?;
        runs.extend(self.read_merged(attempt.records.iter().map(|(record, _)| &record.body))?);
        let object = self.put(&attempt)?;
        self.said_once.repeated(&object);
        self.repeats.took(&object);
        let segments = Arc::clone(&self.segments);
        let mut appended = Vec::with_capacity(attempt.records.len());
        for (record, digest) in &attempt.records {
            let applied = self.image.apply(record, *digest, |part| {
                let name = part.name;
                runs.remove(&name).ok_or_else(|| StoreError::Inconsistent {
                    group: segments.names.to_string(),
                    why: format!("part {name} was accepted and had not been looked at"),
                })
            });
            // It is in the ledger, and the state is not what replay gives.
            let applied = applied.map_err(|error| self.unsure(record.slot, error))?;
            self.after(record, &applied);
            let position = LedgerPosition { slot: record.slot, digest: *digest };
            if !matches!(record.body, Body::PackPlaces(_)) {
                appended.push(Appended { position, verdict: applied.verdict });
            }
        }
        self.look_at_packs(attempt.records.iter().map(|(record, _)| &record.body));
        Ok(appended)
    }

    /// The object that says this, and before it where its parts will lie. `places`: none, if all have objects of their own.
    fn attempt(&mut self, said: Vec<Dated>, places: Option<Dated>) -> Result<Attempt> {
        let mut drafts = Vec::with_capacity(said.len() + 1);
        // Stamps of one object do not run back; where parts lie says nothing of when.
        let ago_max = said.iter().map(|said| said.ago).max().unwrap_or_default();
        let places = places.map(|places| Dated { ago: ago_max, ..places });
        let mut before_ms = self.state().last_stamp().map_or(i64::MIN, |stamp| stamp.wall_ms);
        for Dated { body, ago } in places.into_iter().chain(said) {
            let stamp = dated(self.shared.stamp(), ago, before_ms, random()?);
            before_ms = stamp.wall_ms;
            drafts.push(Draft { body, nonce: random()?, stamp });
        }
        let (backend, count) = (&*self.segments.backend, drafts.len() as u64);
        let before = self.repeats.before(backend, &self.segments.names, self.image.state(), count);
        Attempt::repeating(self.state(), drafts, &before).map_err(|e| StoreError::Record(e.to_string()))
    }

    /// How many records one object can take now.
    pub fn room(&self) -> u64 {
        let next = self.state().next_slot();
        room_in_run(next).min(checkpoint::span() - next.0 % checkpoint::span())
    }

    /// Reads what other writers appended.
    ///
    /// # Errors
    /// [`StoreError::LedgerTorn`], [`StoreError::BehindCheckpoint`], [`StoreError::Uncertain`], or what the file system says.
    pub fn catch_up(&mut self) -> Result<()> {
        self.certain()?;
        loop {
            let slot = self.state().next_slot();
            let backend = Arc::clone(&self.segments.backend);
            let found = get(&*backend, &self.names().record(slot), RECORD_BYTES_MAX as u64)?;
            let read = found.as_ref().map(decode);
            // Only now: what a checkpoint covers may have gone, or be of somebody who came too late.
            if !mutation::on("what lies in a slot counts, whatever checkpoint covers it") {
                self.not_behind(slot)?;
            }
            let Some(read) = read else { return Ok(()) };
            let follows = |first: &Record| self.state().follows(first).map_err(|e| Unusable::damaged(e.to_string()));
            match read.and_then(|records| follows(&records[0].0).map(|()| records)) {
                Ok(records) => {
                    block_on(backend.sync(&self.names().record(slot)))?;
                    let object = found.and_then(Result::ok);
                    if let Some(object) = &object {
                        self.said_once.repeated(object);
                    }
                    for (record, digest) in &records {
                        // † Between the records of an object the next slot looks free, and what is put there is in no replay.
                        self.replay_one(record, *digest).map_err(|error| match record.slot == slot {
                            true => error,
                            false => self.unsure(slot, error),
                        })?;
                    }
                    self.look_at_packs(records.iter().map(|(record, _)| &record.body));
                    if let Some(object) = &object {
                        self.repeats.took(object);
                    }
                }
                Err(unusable) => return Err(self.tear(unusable, slot)),
            }
        }
    }

    /// Whether the state is what replay gives.
    fn certain(&self) -> Result<()> {
        match &self.uncertain {
            Some((slot, why)) => Err(StoreError::Uncertain { group: self.names().to_string(), slot: *slot, why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Whether anything may be changed.
    fn usable(&self) -> Result<()> {
        match &self.torn {
            Some(torn) => Err(torn.error(self.names())),
            None => self.certain(),
        }
    }

    /// A slot above the head cannot be used: nothing goes on from here.
    fn tear(&mut self, unusable: Unusable, slot: Slot) -> StoreError {
        let torn = unusable.at(self.names(), slot);
        let error = torn.error(self.names());
        tracing::error!(group = %self.names(), %slot, why = %torn.why, "a ledger record does not verify");
        self.torn = Some(torn);
        error
    }

    /// The regions of a volume that its layer in a slot touched, exactly. Replay knows that of newer layers only; of older ones it
    /// comes from the record.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]: the record cannot be read any more; or what the file system says.
    pub fn touched(&self, slot: Slot, volume: VolumeId) -> Result<RegionSet> {
        let above = slot.0.checked_sub(1).map(Slot);
        let record = self.state().only_known_by(slot).map(|digest| (slot, digest));
        if record.is_none()
            && let Some(layer) = self.state().layers_above(volume, above).next().filter(|layer| layer.slot == slot)
        {
            return Ok(layer.touched().regions());
        }
        let touched = record.map(|(slot, record)| self.segments.touched(slot, record, volume)).transpose()?.flatten();
        touched.ok_or_else(|| StoreError::Inconsistent {
            group: self.names().to_string(),
            why: format!("the record in slot {slot} cannot be read, or is another ledger's"),
        })
    }

    /// Whether the group's ledger went through a position. Of old ones only their record knows.
    ///
    /// # Errors
    /// [`StoreError::Inconsistent`]: the record cannot be read any more; or what the file system says.
    pub fn went_through(&self, position: &LedgerPosition) -> Result<bool> {
        self.segments.went_through(self.state(), position)
    }

    /// A body that gives up what a policy lets go; `None`: nothing. To be appended; after an accepted one there may be more.
    pub fn prune_plan(&self, policy: &Policy) -> Option<Body> {
        self.prune_plan_keeping(policy, &BTreeSet::new(), &BTreeSet::new())
    }

    /// The same, of which nothing gives up any of the points that somebody needs. Those of the cohorts that were forgotten
    /// ([`CohortCut::cohort_id`](farside_ledger::CohortCut::cohort_id)) are as all others.
    pub fn prune_plan_keeping(&self, policy: &Policy, kept: &BTreeSet<Slot>, forgotten: &BTreeSet<[u8; 16]>) -> Option<Body> {
        if self.usable().is_err() { None } else { self.image.prune_plan_keeping(policy, kept, forgotten).map(Body::Prune) }
    }

    /// How a follower gets from where it is to a member of a point. Nothing holds off deletions for it: the caller sees to it that the
    /// point stays retained ([`GroupStore::prune_plan_keeping`]).
    ///
    /// # Errors
    /// [`StoreError::NoSuchPoint`], [`StoreError::NotAMember`], [`StoreError::TargetOfAnotherHistory`]; what the file system says.
    pub fn follow_look(&self, point: Slot, volume: VolumeId, stage: &FollowStage) -> Result<FollowLook> {
        FollowLook::new(self.state(), self.reader_of_kept(point, volume)?, stage)
    }

    /// Opens a member of a point that the caller keeps retained.
    ///
    /// # Errors
    /// [`StoreError::NoSuchPoint`], [`StoreError::NotAMember`]; what the file system says.
    pub fn reader_of_kept(&self, point: Slot, volume: VolumeId) -> Result<LazyPointReader> {
        PointReader::open_lazily(&Readers::None, &self.image, &self.segments, point, volume)
    }

    /// Prunes until nothing is left to give up; says how many points went.
    ///
    /// # Errors
    /// Those of [`GroupStore::append`].
    pub fn prune(&mut self, policy: &Policy) -> Result<usize> {
        self.certain()?;
        let mut gone = 0;
        while let Some(body) = self.prune_plan(policy) {
            let Body::Prune(prune) = &body else { break };
            let points = prune.points.len();
            if self.append(body)?.verdict != Verdict::Accepted {
                break;
            }
            gone += points;
        }
        Ok(gone)
    }

    /// Damaged segments in whose place nothing newer lies: what they held cannot be restored, and nothing of their volumes that is not newer is pruned.
    pub fn damaged(&self) -> Vec<String> {
        let named = |part: &Part| {
            let volume = self.state().volume(part.name.layer.volume)?;
            Some(self.segments.locate(&volume.meta().name, part).object.to_string())
        };
        self.image.damaged().filter_map(|no| named(self.image.parts().get(no)?)).collect()
    }

    /// Whether the group is to be opened anew as those can be read again, somebody having put them back or their disk giving them: all of them, or some
    /// and no more than when it was looked before. Looks at some at a time, one after the other.
    pub fn is_damage_over(&mut self) -> bool {
        self.are_back.retain(|no| self.image.is_damaged(*no));
        let known = self.are_back.len();
        let of_volume = |part: &Part| self.state().volume(part.name.layer.volume).map(|volume| volume.meta().name.clone());
        let (behind, began) = (self.damaged_behind, Instant::now());
        let later = self.image.damaged().filter(|no| Some(*no) > behind);
        let all: Vec<PartNo> = later.chain(self.image.damaged().filter(|no| Some(*no) <= behind)).collect();
        let mut back = Vec::new();
        let mut last = behind;
        for no in all.into_iter().filter(|no| !self.are_back.contains(no)) {
            let part = self.image.parts().get(no);
            let read = part.and_then(|part| Some(self.segments.footer_as_it_is(&of_volume(part)?, part)));
            back.extend(read.is_some_and(|read| read.is_ok()).then_some(no));
            last = Some(no);
            // † A disk or a bucket that fails takes its time, and the group waits.
            if began.elapsed() >= DAMAGED_LOOK {
                break;
            }
        }
        self.damaged_behind = last;
        self.are_back.extend(back);
        self.are_back.len() == self.image.damaged().count() || known > 0 && self.are_back.len() == known
    }

    /// Points before this slot have nothing of those.
    pub fn damaged_since(&self) -> Option<Slot> {
        self.image.damaged().map(|no| self.image.parts().get(no).map_or(Slot(0), |part| part.born)).min()
    }

    /// The same of those of one volume.
    pub fn damaged_of(&self, volume: VolumeId) -> Option<Slot> {
        let parts = self.image.damaged().filter_map(|no| self.image.parts().get(no));
        parts.filter(|part| part.name.layer.volume == volume).map(|part| part.born).min()
    }

    /// How many there are.
    pub fn damaged_parts(&self) -> u64 {
        self.image.damaged().count() as u64
    }

    /// The same, counted by volume.
    pub fn damaged_by_volume(&self) -> BTreeMap<VolumeId, u32> {
        let mut volumes = BTreeMap::new();
        for part in self.image.damaged().filter_map(|no| self.image.parts().get(no)) {
            *volumes.entry(part.name.layer.volume).or_default() += 1;
        }
        volumes
    }

    /// Files that wait until nobody reads, or another object says as well that they may go.
    pub fn deferred(&self) -> usize {
        self.dead.len() + self.dead_packs()
    }

    /// Since when some do.
    pub fn deferred_since(&self) -> Option<Instant> {
        self.deferred_since
    }

    /// Keeps what an end message said of an unpublished layer beside its parts, durably, until it is dropped or published. `ago`: how long
    /// it has been staged.
    ///
    /// # Errors
    /// [`StoreError::UnknownVolume`], [`StoreError::Full`], or what the file system says. Its source says it again.
    pub fn keep_end(&self, end: &KeptEnd, ago: Duration) -> Result<()> {
        let ago_ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        let staged_wall_ms = self.shared.stamp().wall_ms.saturating_sub_unsigned(ago_ms);
        self.landing.keep_end(&self.volume(end.key.volume)?.name, end, staged_wall_ms)
    }

    /// Forgets the parts of an unpublished layer from a number on: landed, under way, or linked into the segments by an append
    /// that failed.
    ///
    /// # Errors
    /// What the file system says; the parts are forgotten all the same. [`StoreError::LedgerTorn`],
    /// [`StoreError::Uncertain`]: nothing was done.
    pub fn drop_parts(&mut self, key: LayerKey, from: u32) -> Result<()> {
        self.usable()?;
        let dropped = self.landing.drop_parts(key, from);
        if self.state().layer(&key).is_some() {
            return dropped.map(|_| ());
        }
        // † In a bucket a deletion may come to pass later, when a record names what lies there then; `awaited` knows of them.
        if let (Ok(numbers), Some(volume), true) = (&dropped, self.state().volume(key.volume), self.shared.is_dir) {
            for &number in numbers {
                let name = self.segments.name(&volume.meta().name, &PartName { layer: key, number });
                block_on(self.segments.backend.delete(&name))?;
            }
        }
        dropped.map(|_| ())
    }

    /// What the head image holds in a run, for a Compare. Its bytes are read and held against their digests: what is damaged
    /// counts as unreadable, so that the source sends it again.
    ///
    /// # Errors
    /// [`StoreError::UnknownVolume`], or what the file system says.
    pub fn digests(&self, volume: VolumeId, run: GranuleRun) -> Result<Vec<DigestRun>> {
        let name = &self.volume(volume)?.name;
        let runs = head_digests(&self.image, volume, run, |part| match self.segments.footer(name, part) {
            Ok(footer) => Ok(Some(footer)),
            Err(FooterFault::Damaged(why)) => {
                tracing::error!(segment = %self.segments.locate(name, part), why, "a segment's footer is damaged");
                Ok(None)
            }
            Err(FooterFault::Store(error)) => Err(error),
        })?;
        let rotten = self.rotten(volume, run)?;
        Ok(if rotten.is_empty() { runs } else { blot(runs, run, rotten.into_iter()) })
    }

    /// Granules of the head image whose stored bytes are not what was published.
    fn rotten(&self, volume: VolumeId, run: GranuleRun) -> Result<Vec<GranuleRun>> {
        let (Some(head), meta) = (self.image.head(volume), self.volume(volume)?) else { return Ok(Vec::new()) };
        let mut frames: BTreeSet<(PartNo, u32)> = BTreeSet::new();
        for extent in head.index.extents(run).filter(|e| e.content == Content::Data) {
            let part = self.image.parts().get(extent.part).expect("the head image uses only parts that are there");
            let Ok(footer) = self.segments.footer(&meta.name, part) else { continue }; // unreadable already
            let mut at = extent.run.start;
            while let Some(frame) = footer.frame_of(at).filter(|_| at < extent.run.end()) {
                frames.insert((extent.part, frame.offset));
                at = frame.run.end();
            }
        }
        let frames: Vec<(PartNo, u32)> = frames.into_iter().collect();
        let bad = parallel(&*self.segments.backend, &frames, |&(no, offset)| {
            let part = self.image.parts().get(no).expect("the head image uses only parts that are there");
            self.segments.check_frame(meta, part, offset)
        });
        let mut rotten = Vec::new();
        for ((no, _), bad) in frames.iter().zip(bad) {
            let Some((frame, why)) = bad? else { continue };
            let part = self.image.parts().get(*no).expect("the head image uses only parts that are there");
            self.segments.spoil(&part.name);
            tracing::error!(segment = %self.segments.locate(&meta.name, part), why, "a segment is damaged; its source sends it again");
            // Only where the head image takes it from there.
            rotten.extend(head.index.extents(frame).filter(|e| e.part == *no).map(|e| e.run));
        }
        Ok(rotten)
    }

    /// What an entry for a landed layer must name as `unreadable_regions`: see [`GroupImage::unreadable_after`].
    ///
    /// # Errors
    /// [`StoreError::PartMissing`], [`StoreError::BadPart`], or what the file system says.
    pub fn unreadable_after(&self, key: LayerKey, parts: &[farside_ledger::PartEntry], regions: &RegionSet) -> Result<RegionSet> {
        let name = self.volume(key.volume)?.name.clone();
        let mut runs = Vec::new();
        for (number, entry) in (0..).zip(parts) {
            let footer = self.landing.footer(&name, &PartName { layer: key, number }, entry)?;
            runs.extend(runs_of(&footer));
        }
        Ok(self.image.unreadable_after(key.volume, regions, &runs))
    }

    /// The retained points, oldest first.
    pub fn points(&self) -> Vec<PointInfo> {
        points::list(&self.image).collect()
    }

    /// One of them.
    pub fn point(&self, point: Slot) -> Option<PointInfo> {
        points::one(&self.image, point)
    }

    /// Opens a member of a point for reading. The reader holds off deletions as long as it lives.
    ///
    /// # Errors
    /// [`StoreError::NoSuchPoint`], [`StoreError::NotAMember`], [`StoreError::Corrupt`]; what the file system says.
    pub fn point_reader(&self, point: Slot, volume: VolumeId) -> Result<PointReader> {
        PointReader::open(&self.shared.readers(), &self.image, &self.segments, point, volume)
    }

    /// How many requests that write the store was asked for since it was opened, by all groups.
    pub fn writes(&self) -> u64 {
        self.segments.backend.writes()
    }

    /// Puts a key that a host keeps, wrapped, beside those that the group has, durably; says which key it is of, and its number.
    ///
    /// # Errors
    /// [`StoreError::BadKey`], of one at rest, too: those no host has; what the file system or the service says.
    pub fn keep_key(&mut self, wrapped: &[u8]) -> Result<(KeyId, u64)> {
        if let Some(of) = Wrapping::decode(wrapped).ok().as_ref().and_then(Wrapping::group) {
            let why = format!(
                "it is of the key that {of} is encrypted with at rest, which no host brings: move it out of its folder of keys"
            );
            return Err(StoreError::BadKey { group: self.names().to_string(), why });
        }
        add_wrapping(&*self.segments.backend, &self.segments.names, wrapped)
    }

    /// What wrapped keys are asked for through, by who must not hold up this group.
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.segments.backend)
    }

    /// What the ledger says of the group's keys.
    pub fn claimed_keys(&self) -> ClaimedKeys {
        ClaimedKeys::of(self.state().volumes().map(|(_, volume)| volume.meta()))
    }

    /// Bytes of all published segments.
    pub fn segment_bytes(&self) -> u64 {
        self.image.parts().bytes() + self.image.dead_bytes_in_packs()
    }

    /// Bytes of those that nothing needs any more. Walks them all.
    pub fn dead_bytes(&self) -> u64 {
        self.image.parts().dead_bytes(self.state()) + self.image.dead_bytes_in_packs()
    }

    /// The layers that come in with these records, in the slots after the head; with the names of their volumes, and their slots.
    fn new_layers<'b>(&self, bodies: impl Iterator<Item = &'b Body>) -> Result<Vec<(&'b LayerEntry, Name, Slot)>> {
        let mut new: Vec<(&LayerEntry, Name, Slot)> = Vec::new();
        // What each volume's chain waits for once the records before are in.
        let mut next: BTreeMap<VolumeId, LayerKey> = BTreeMap::new();
        for (slot, body) in (self.state().next_slot().0..).map(Slot).zip(bodies) {
            let Body::Layers(layers) = body else { continue };
            for entry in &layers.members {
                let Some(volume) = self.state().volume(entry.key.volume) else { continue }; // void, as replay will say
                let published = self.state().layer(&entry.key).is_some();
                let awaited = next.entry(entry.key.volume).or_insert_with(|| volume.next_key());
                if published || entry.key != *awaited {
                    continue; // a duplicate, or void
                }
                check_digest(entry)?;
                awaited.seq = awaited.seq.next();
                new.push((entry, volume.meta().name.clone(), slot));
            }
        }
        Ok(new)
    }

    /// Links landed parts into the segments, those that do not lie in packs, and reads the footers of all: what is published is there and
    /// is what is named.
    fn adopt<'b>(
        &mut self,
        bodies: impl Iterator<Item = &'b Body>,
        places: &BTreeMap<PartName, Place>,
    ) -> Result<BTreeMap<PartName, PartRuns>> {
        let new = self.new_layers(bodies)?;
        let mut alone: Vec<(&Name, PartName, &PartEntry)> = Vec::new();
        for (entry, name, _) in &new {
            let parts = (0..).zip(&entry.parts).map(|(number, part)| (PartName { layer: entry.key, number }, part));
            alone.extend(parts.filter(|(part, _)| !places.contains_key(part)).map(|(part, known)| (name, part, known)));
        }
        // Before anything is linked: what became of it is remembered whatever the answer.
        self.awaited.extend(alone.iter().map(|(name, part, _)| (*part, (*name).clone())));
        self.landing.adopt(&self.segments, &alone)?;
        let mut runs = BTreeMap::new();
        // What lies over the head image by then.
        let mut over: BTreeMap<VolumeId, Vec<(GranuleRun, Content)>> = BTreeMap::new();
        for (entry, name, born) in new {
            let mut layer_runs = Vec::new();
            let place = |number| places.get(&PartName { layer: entry.key, number }).copied();
            for part in parts_of(entry.key, &entry.parts, born, place) {
                if !self.shared.is_dir
                    && let Some(entry) = entry.parts.get(part.name.number as usize)
                    && let Ok(footer) = self.landing.footer(&name, &part.name, entry)
                {
                    self.segments.learn(&part, footer);
                }
                let footer = self.segments.footer(&name, &part).map_err(|fault| match fault {
                    FooterFault::Store(error) => error,
                    FooterFault::Damaged(why) => StoreError::BadPart { layer: entry.key, part: part.name.number, why },
                })?;
                let part_runs = runs_of(&footer);
                layer_runs.extend_from_slice(&part_runs);
                runs.insert(part.name, PartRuns::Known(part_runs));
            }
            let over = over.entry(entry.key.volume).or_default();
            over.extend_from_slice(&layer_runs);
            self.check_said(entry, &layer_runs, over)?;
        }
        Ok(runs)
    }

    /// What the end message said of a layer is held against what landed: a region that is not named would be missed by the
    /// position rule, and one with unreadable runs would make a good point of a degraded one. `over`: what lies over the head image
    /// then, of this layer and of those before it in the same object.
    fn check_said(&self, entry: &LayerEntry, layer_runs: &[(GranuleRun, Content)], over: &[(GranuleRun, Content)]) -> Result<()> {
        let bad = |why: &str| StoreError::BadPart { layer: entry.key, part: 0, why: why.to_owned() };
        let geometry = self.volume(entry.key.volume)?.geometry;
        let of = |wanted: &dyn Fn(Content) -> bool| {
            let mut regions = RegionSet::new();
            let runs = layer_runs.iter().filter(|(_, content)| wanted(*content));
            runs.for_each(|(run, _)| regions.insert_range(geometry.regions_of(*run)));
            regions
        };
        let mut stray = of(&|_| true);
        stray.subtract(&entry.regions);
        if let Some(region) = stray.first() {
            return Err(bad(&format!("its layer holds region {region}, which the end message does not name")));
        }
        let own = of(&|content| content == Content::Unreadable);
        // Region by region, unless that would take for ever.
        let before = self.state().volume(entry.key.volume).map_or(0, |v| v.unreadable().len());
        let mut unsaid = match before.saturating_add(own.len()) <= UNREADABLE_REGIONS_JUDGED {
            true => self.image.unreadable_after(entry.key.volume, &entry.regions, over),
            false => own,
        };
        unsaid.subtract(&entry.unreadable_regions);
        match unsaid.first() {
            Some(region) => Err(bad(&format!("region {region} holds an unreadable run, which the end message does not say"))),
            None => Ok(()),
        }
    }

    /// A slot above our head that a checkpoint covers was decided without us: its verdict is in the checkpoint's state.
    fn not_behind(&mut self, slot: Slot) -> Result<()> {
        if checkpoint::covers(&*self.segments.backend, self.names(), slot)? {
            self.uncertain = Some((slot, "a checkpoint of another writer covers it".to_owned()));
            return Err(StoreError::BehindCheckpoint { group: self.names().to_string(), slot });
        }
        Ok(())
    }

    /// Writes the record; returns only when it is in its slot, and no checkpoint had decided that before.
    fn put(&mut self, attempt: &Attempt) -> Result<Bytes> {
        let object = self.put_unchecked(attempt)?;
        if mutation::on("a record put below a checkpoint counts") {
            return Ok(object);
        }
        let slot = attempt.slot();
        self.not_behind(slot).map_err(|error| self.unsure(slot, error))?;
        Ok(object)
    }

    /// Our record is in its slot, and an error keeps us from knowing what it is worth: only opening the group again tells.
    fn unsure(&mut self, slot: Slot, error: StoreError) -> StoreError {
        if self.uncertain.is_some() {
            return error; // it says so itself
        }
        tracing::error!(group = %self.names(), %slot, %error, "what became of a record is not known");
        let (group, why) = (self.names().to_string(), error.to_string());
        self.uncertain = Some((slot, why.clone()));
        StoreError::Uncertain { group, slot, why }
    }

    fn put_unchecked(&mut self, attempt: &Attempt) -> Result<Bytes> {
        self.shared.same_place()?;
        let put = self.put_there(attempt);
        if put.is_err() {
            self.shared.doubt_place();
        }
        put
    }

    /// Says what lies in the slot then: our records, and what the object repeats.
    fn put_there(&mut self, attempt: &Attempt) -> Result<Bytes> {
        let name = self.names().record(attempt.slot());
        let backend = Arc::clone(&self.segments.backend);
        let create = |object: &Bytes| block_on(backend.create(&name, object.clone()));
        let mut object = Bytes::from(attempt.bytes.clone());
        let mut answer = create(&object);
        if matches!(answer, Err(StoreError::Full { .. })) {
            // † What is repeated may be more than the ballast, and more than there is room for: no record waits for it, a prune least of all.
            let alone = attempt.alone();
            let prunes = attempt.records.iter().any(|(record, _)| matches!(record.body, Body::Prune(_)));
            if (prunes && self.shared.release_ballast()) || alone.len() < attempt.bytes.len() {
                object = alone.into();
                answer = create(&object);
            }
        }
        let error = match answer {
            Ok(Created::New) => return Ok(object),
            Ok(Created::AlreadyExists) => None,
            Err(e @ (StoreError::Full { .. } | StoreError::ReadOnly { .. } | StoreError::Denied { .. })) => return Err(e),
            Err(e) => Some(e),
        };
        let is_near = backend.requests_at_once().is_none();
        let found = match block_on(backend.get(&name, RECORD_BYTES_MAX as u64)) {
            // One bad file, not a bad store; unless the write failed as well.
            Err(StoreError::Unreadable { source, .. }) => {
                let unusable = Unusable::damaged(format!("it cannot be read: {source}"));
                return Err(match error {
                    Some(error) if is_near => self.unsure(attempt.slot(), error),
                    Some(error) => error,
                    None => self.tear(unusable, attempt.slot()),
                });
            }
            // † A directory has made the name before it says that it could not be synced. What is opened again is looked at in any case.
            Err(why) if is_near && error.is_some() && why.remedy() != crate::Remedy::Reopen => {
                return Err(self.unsure(attempt.slot(), why));
            }
            other => other?,
        };
        match found {
            None => Err(error.unwrap_or(StoreError::Overtaken { slot: attempt.slot() })),
            Some(bytes) => match attempt.find(&bytes) {
                // It is there; is it there for ever?
                Ok(Found::Ours) => match block_on(backend.sync(&name)) {
                    Ok(()) => Ok(bytes),
                    Err(error) => Err(self.unsure(attempt.slot(), error)),
                },
                _ => {
                    self.catch_up()?;
                    Err(StoreError::Overtaken { slot: attempt.slot() })
                }
            },
        }
    }

    fn replay_one(&mut self, record: &Record, digest: RecordDigest) -> Result<()> {
        let segments = Arc::clone(&self.segments);
        let names: BTreeMap<VolumeId, Name> = self.state().volumes().map(|(id, v)| (id, v.meta().name.clone())).collect();
        let applied = self.image.apply(record, digest, |part| {
            let name = names.get(&part.name.layer.volume).expect("an accepted layer's volume was claimed");
            segments.runs(name, part, None)
        })?;
        self.after(record, &applied);
        Ok(())
    }

    /// What follows from a record that is in the state now. Failures here cost space until the next start, and nothing else.
    fn after(&mut self, record: &Record, applied: &Applied) {
        if let Body::Layers(layers) = &record.body {
            for entry in &layers.members {
                if self.state().layer(&entry.key).is_some() {
                    self.landing.published(entry.key);
                }
            }
        }
        if let (Verdict::Accepted, Body::Claim(claim)) = (&applied.verdict, &record.body) {
            self.landing.drop_older(claim.volume.id, Term(record.slot.0));
        }
        for (part, volume) in std::mem::take(&mut self.awaited) {
            if self.image.is_awaited(&part.layer) {
                self.awaited.insert(part, volume);
            } else if self.image.is_debris(&part) {
                self.dead.insert(part, Dead::of(volume));
            }
        }
        self.said_once.heard(self.image.state());
        self.sort_out_merges();
        let durable = self.checkpoints.write(&*self.segments.backend, &self.segments.names, &self.image);
        let replaced = durable.map_or_else(Vec::new, |end| self.image.covered(end));
        durable.into_iter().for_each(|end| self.said_once.covered(end));
        let given_up = applied.given_up.iter().map(|part| (part, 0, Some(record.slot)));
        let given_up = given_up.chain(replaced.iter().map(|part| (part, part.bytes, None)));
        // What lies in a pack goes with it.
        for (part, merged_bytes, said) in given_up.filter(|(part, ..)| part.place.is_none()) {
            if let Some(volume) = self.state().volume(part.name.layer.volume) {
                let volume = volume.meta().name.clone();
                self.dead.insert(part.name, Dead { merged_bytes, said, ..Dead::of(volume) });
            }
        }
        if !self.dead.is_empty() && self.shared.is_dir {
            self.sweep_in_passing();
        }
    }

    /// For tests that read beside it.
    #[cfg(test)]
    pub(crate) fn segments(&self) -> &Segments {
        &self.segments
    }

    /// What the landing of a receiver that starts now would find.
    #[cfg(test)]
    pub(crate) fn landing_after_restart(&self) -> Arc<Landing> {
        let landing = Landing::new(Arc::clone(&self.shared.staging), self.shared.is_dir, self.names());
        landing.recover(&self.segments, &self.image, true).expect("recover");
        landing
    }

    /// The segments that exist.
    fn list_segments(&self) -> Result<Vec<(PartName, Dead)>> {
        let mut found = Vec::new();
        list_all(&*self.segments.backend, Some(&self.names().segments()), |listed| {
            found.extend(self.known_segment(&listed));
        })?;
        Ok(found)
    }

    /// The part that a segment's name says it is.
    fn known_segment(&self, listed: &Listed) -> Option<(PartName, Dead)> {
        let names = self.names();
        let Some(GroupObject::Segment { volume, term, seq, number }) = names.parse(&listed.name) else { return None };
        let layer = LayerKey { volume: volume_id(&names.source, &names.group, &volume), term, seq };
        // In a directory what a record gave up goes soon, unless it waits as what was merged does.
        let merged_bytes = if self.shared.is_dir { listed.bytes } else { 0 };
        Some((PartName { layer, number }, Dead { created_ms: Some(listed.created_ms), merged_bytes, ..Dead::of(volume) }))
    }

    /// The terms of claims of these folders; those that the ledger does not know only if there is a segment in them.
    fn believed(&self, folders: Vec<(Name, Term)>) -> Result<BTreeSet<Term>> {
        // Of merges there may be many, which are not looked into unless they were begun beyond the head.
        let next = self.state().next_slot();
        let is_known = |term: &Term| term.merge().map_or(term.0 < next.0, |merge| merge.since() <= next);
        let (known, news): (Vec<_>, Vec<_>) = folders.into_iter().partition(|(_, term)| is_known(term));
        let mut terms: BTreeSet<Term> = known.into_iter().map(|(_, term)| term).collect();
        for (volume, term) in news {
            let folder = self.names().segments_of_term(&volume, term);
            let page = block_on(self.segments.backend.list(Some(&folder), None, LISTED_AT_ONCE))?;
            if page.objects.iter().any(|listed| self.known_segment(listed).is_some()) {
                terms.insert(term);
            }
        }
        Ok(terms)
    }

    /// Finds the segments that no accepted record names: dead if none can any more (T4) or a prune record gave them up. Those
    /// of a claim that is not in the ledger are nobody's to judge.
    fn sort_out(&mut self, there: Vec<(PartName, Dead)>) {
        let mut strange = 0_usize;
        for (part, found) in there {
            if self.image.is_debris(&part) {
                // By which record nobody knows any more.
                self.dead.insert(part, Dead { said: self.state().head(), ..found });
            } else if self.state().may_be_merged(&part.layer) {
                self.merging.found(part, found);
            } else if self.image.is_awaited(&part.layer) {
                self.awaited.insert(part, found.volume);
            } else if self.state().published(&part.layer).is_none() {
                strange += 1;
            }
        }
        if strange > 0 {
            tracing::warn!(group = %self.names(), segments = strange, "segments of claims that the ledger does not hold are kept");
        }
    }
}

/// A layer's digest binds its parts; one that does not would be published and never proved.
fn check_digest(entry: &LayerEntry) -> Result<()> {
    let footers: Vec<[u8; 32]> = entry.parts.iter().map(|p| p.footer_digest).collect();
    if layer_digest(&entry.key, &footers) == entry.digest {
        return Ok(());
    }
    let why = "the layer's digest is not that of its parts".to_owned();
    Err(StoreError::BadPart { layer: entry.key, part: 0, why })
}

/// Digests of a run of a head image. `footer`: of a part; `None` when it is damaged. Pure, given that.
///
/// # Errors
/// Those of `footer`.
pub fn head_digests<E>(
    image: &GroupImage,
    volume: VolumeId,
    run: GranuleRun,
    mut footer: impl FnMut(&Part) -> Result<Option<Arc<Footer>>, E>,
) -> Result<Vec<DigestRun>, E> {
    let mut runs = Vec::new();
    let Some(head) = image.head(volume) else {
        add(&mut runs, DigestRun::Absent { granules: run.count });
        return Ok(runs);
    };
    let mut at = run.start;
    for extent in head.index.extents(run) {
        add(&mut runs, DigestRun::Absent { granules: extent.run.start.0 - at.0 });
        at = extent.run.end();
        let granules = extent.run.count;
        match extent.content {
            Content::Zero => add(&mut runs, DigestRun::Zero { granules }),
            Content::Unreadable => add(&mut runs, DigestRun::Unreadable { granules }),
            Content::Data => {
                let part = image.parts().get(extent.part).expect("the head image uses only parts that are there");
                match footer(part)?.and_then(|f| digests_of(&f, extent.run)) {
                    Some(digests) => add(&mut runs, DigestRun::Data(digests)),
                    None => add(&mut runs, DigestRun::Unreadable { granules }),
                }
            }
        }
    }
    add(&mut runs, DigestRun::Absent { granules: run.end().0 - at.0 });
    Ok(if head.unknown.extent_count() > 0 { blot(runs, run, head.unknown.extents(run).map(|e| e.run)) } else { runs })
}

/// The digests of a run that lies in data frames of a part; `None` if it does not.
pub(crate) fn digests_of(footer: &Footer, run: GranuleRun) -> Option<Vec<GranuleDigest>> {
    let mut digests = Vec::with_capacity(usize::try_from(run.count).ok()?);
    let mut at = run.start;
    while at < run.end() {
        let frame = footer.frame_of(at)?;
        let end = frame.run.end().min(run.end());
        let of = footer.digests_of(frame);
        let first = (at.0 - frame.run.start.0) as usize;
        digests.extend_from_slice(of.get(first..first + (end.0 - at.0) as usize)?);
        at = end;
    }
    Some(digests)
}

/// Appends a run, joining it to the one before where they are alike.
fn add(runs: &mut Vec<DigestRun>, next: DigestRun) {
    match (runs.last_mut(), next) {
        (_, DigestRun::Absent { granules: 0 }) => {}
        (Some(DigestRun::Absent { granules: a }), DigestRun::Absent { granules: b })
        | (Some(DigestRun::Zero { granules: a }), DigestRun::Zero { granules: b })
        | (Some(DigestRun::Unreadable { granules: a }), DigestRun::Unreadable { granules: b }) => *a += b,
        (Some(DigestRun::Data(a)), DigestRun::Data(b)) => a.extend(b),
        (_, next) => runs.push(next),
    }
}

/// Makes granules unreadable that a damaged part may have held.
fn blot(runs: Vec<DigestRun>, whole: GranuleRun, unknown: impl Iterator<Item = GranuleRun>) -> Vec<DigestRun> {
    let unknown: Vec<GranuleRun> = unknown.collect();
    let (mut out, mut at) = (Vec::new(), whole.start.0);
    for run in runs {
        let granules = match &run {
            DigestRun::Absent { granules } | DigestRun::Zero { granules } | DigestRun::Unreadable { granules } => *granules,
            DigestRun::Data(digests) => digests.len() as u64,
        };
        for i in 0..granules {
            let granule = at + i;
            let blotted = unknown.iter().any(|u| u.start.0 <= granule && granule < u.end().0);
            add(
                &mut out,
                match &run {
                    _ if blotted => DigestRun::Unreadable { granules: 1 },
                    DigestRun::Absent { .. } => DigestRun::Absent { granules: 1 },
                    DigestRun::Zero { .. } => DigestRun::Zero { granules: 1 },
                    DigestRun::Unreadable { .. } => DigestRun::Unreadable { granules: 1 },
                    DigestRun::Data(digests) => DigestRun::Data(vec![digests[i as usize]]),
                },
            );
        }
        at += granules;
    }
    out
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "damage_tests.rs"]
mod damage_tests;
