//! Looking at a whole store: every digest, every reference, what is left over. Changes nothing.
//!
//! Beside a running receiver it shares the readers' lock, so that nothing disappears under it; what is published while it
//! looks counts as staged. In a bucket nothing holds what is given up meanwhile: the ledger is replayed again before anything is called
//! damaged, and what has gone by then is no fault. Findings are values: which group, volume, points, region and file, and what it means.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use farside_keys::ContentKeys;
use farside_layer::{FrameDecoder, PartVerifier, RunKind, layer_digest};
use farside_ledger::{
    CHECKPOINT_STATE_BYTES_MAX, CheckpointPlace, CheckpointRoot, SlotDigests, State, VolumeMeta, VolumeState, volume_id,
};
use farside_region::{GranuleIndex, GranuleRun, LayerKey, Name, RegionIndex, Slot, VolumeId};

use crate::backend::{ObjectName, block_on, list_all};
use crate::checkpoint;
use crate::error::{Result, StoreError};
use crate::image::{GroupImage, PartRuns, VolumeImage};
use crate::index::{Content, PartNo};
use crate::keys::wrappings;
use crate::leases;
use crate::liveness::{Part, PartName, Parts};
use crate::names::{self, GroupNames, GroupObject};
use crate::reader::StoreReader;
use crate::replay::{Slots, find_record, get, index_all, parallel, replay, replay_all_slots};
use crate::segments::{FooterFault, Segments, runs_of};
use crate::store::{Listing, mislabelled};

/// Bytes of a segment read at once.
const READ_BYTES: u64 = 1 << 20;
/// Parts checked between two looks at whether to go on.
const BATCH: usize = 32;
/// Findings kept per group; a store in worse shape than that needs no longer list.
const FINDINGS_MAX: usize = 10_000;
/// How often checkpoints are looked at again where the ledger went on so far meanwhile.
const CHECKPOINT_TURNS: usize = 3;

/// Where a wrapped key may be as well.
const KEY_COPIES: &str = "a copy of the store (or, if the host keeps its key itself, from /var/lib/farside/keys/GROUP there)";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Normal, and good to know.
    Note,
    /// Costs space or attention, no data.
    Warning,
    /// Something that was published cannot be restored, or the ledger cannot go on.
    Error,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Problem {
    /// A folder or description is not what it should be, or the medium does not give it.
    Description,
    /// It could not be looked at, or not to its end, by whoever checks: nothing says that it is damaged.
    Unchecked,
    /// A ledger record does not verify, or is not there although later ones were.
    LedgerTorn,
    /// What the object of a ledger record repeats of those before it is damaged, and the record is not.
    Repeats,
    /// A segment that the ledger names is not there.
    SegmentMissing,
    /// A segment is not what was published.
    SegmentCorrupt,
    /// A layer's digest is not that of its parts.
    LayerDigest,
    /// A point does not cover a member.
    PointIncomplete,
    /// A point holds runs that the source could not read.
    PointDegraded,
    /// Nothing names it, and nothing can any more; the receiver sweeps it.
    Orphan,
    /// Of a claim that the ledger does not hold (any more); never swept.
    Strange,
    /// Given up by a prune record, and not deleted yet.
    AwaitsDeletion,
    /// Staged, and not published yet.
    Staged,
    /// A checkpoint is not what the ledger's records give, or is missing.
    Checkpoint,
    /// A wrapped key is damaged or missing.
    Key,
    /// The key that was given opens none of the wrapped ones.
    KeyUnopened,
    /// Somebody reads a point of a store in a bucket, or did.
    Lease,
    /// Not a name that Farside gives.
    Foreign,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What.
    pub problem: Problem,
    /// Source and group.
    pub group: String,
    /// The volume's name.
    pub volume: Option<Name>,
    /// The retained points that it spoils.
    pub points: Vec<Slot>,
    /// It spoils the head image, too.
    pub head: bool,
    /// Where in the volume.
    pub region: Option<RegionIndex>,
    /// Which object.
    pub object: Option<String>,
    /// For people.
    pub text: String,
}

/// What a check amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Everything worth saying.
    pub findings: Vec<Finding>,
    /// Groups looked at.
    pub groups: u64,
    /// Ledger records replayed.
    pub records: u64,
    /// Retained points.
    pub points: u64,
    /// Published segments, every byte of which was checked.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Those of them that nothing needs any more: the next prune gives them up.
    pub dead_bytes: u64,
    /// Bytes of segments that no accepted record names.
    pub unnamed_bytes: u64,
}

impl CheckReport {
    /// The worst that was found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|f| f.severity).max()
    }

    /// Dead bytes ÷ bytes of published segments; 0 for an empty store.
    pub fn dead_ratio(&self) -> f64 {
        if self.segment_bytes == 0 { 0.0 } else { self.dead_bytes as f64 / self.segment_bytes as f64 }
    }
}

/// Checks a store. `progress` hears how many bytes of segments were read; `false` stops.
///
/// # Errors
/// When it cannot be looked at, or was stopped. What is wrong *in* it is a finding.
pub fn check(store: &StoreReader, progress: &(dyn Fn(u64) -> bool + Sync)) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let read = AtomicU64::new(0);
    let listing = store.groups()?;
    strays(store, &listing, &mut report)?;
    for names in &listing.groups {
        report.groups += 1;
        match check_group(store, names, &read, progress, &mut report) {
            Err(error) if is_of_group(&error) => {
                let text = format!("{names} cannot be checked: {error}");
                report.findings.push(Finding { text, ..finding(names, unchecked(&error)) });
            }
            other => other?,
        }
    }
    report.findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
    Ok(report)
}

/// Whether what kept one group from being checked to its end says nothing of the others.
fn is_of_group(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Denied { .. } | StoreError::RemoteDenied { .. } | StoreError::Unreadable { .. } | StoreError::Io { .. }
    )
}

/// † Who may not read something is not to mend it.
fn unchecked(error: &StoreError) -> Problem {
    if let StoreError::Unreadable { .. } = error { Problem::Description } else { Problem::Unchecked }
}

fn check_group(
    store: &StoreReader,
    names: &GroupNames,
    read: &AtomicU64,
    progress: &(dyn Fn(u64) -> bool + Sync),
    report: &mut CheckReport,
) -> Result<()> {
    let reader = match store.group_as_listed(names) {
        Ok(reader) => reader,
        Err(
            error @ (StoreError::ForeignGroup { .. }
            | StoreError::Damaged { .. }
            | StoreError::Unreadable { .. }
            | StoreError::Version { .. }),
        ) => {
            let finding = Finding { object: Some(names.description().to_string()), ..finding(names, Problem::Description) };
            report.findings.push(Finding { text: error.to_string(), ..finding });
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let (image, segments, torn, unlocking) = reader.into_parts();
    if let Some(text) = mislabelled(&**store.backend(), names)? {
        let base = finding(names, Problem::Description);
        let object = Some(names.description().to_string());
        report.findings.push(Finding { severity: Severity::Warning, object, text, ..base });
    }
    if let Some(torn) = &torn {
        let text = torn.error(names).to_string();
        report.findings.push(Finding { object: Some(torn.file.clone()), text, ..finding(names, Problem::LedgerTorn) });
    }
    let mut keys = BTreeMap::new();
    for (id, volume) in image.state().volumes() {
        // That the key is another is said, of each volume; whatever needs none is looked at all the same, here and in other groups.
        let of_volume = match unlocking.keys_if_given(&**store.backend(), names, volume.meta()) {
            Err(error @ StoreError::KeyNeeded { .. }) => {
                report.findings.push(Finding {
                    severity: Severity::Warning,
                    text: format!("{error}. Only its stored bytes were looked at: whether it can be restored is not known"),
                    volume: Some(volume.meta().name.clone()),
                    ..finding(names, Problem::KeyUnopened)
                });
                (&volume.meta().digest_key).into()
            }
            other => other?,
        };
        keys.insert(id, of_volume);
    }
    let mut group = GroupCheck { names: names.clone(), image, segments: &segments, keys, bad: Vec::new(), findings: Vec::new() };
    let checked = group.check_all(store, read, progress, torn.is_some(), report);
    report.records += group.image.state().next_slot().0;
    report.points += group.image.state().points().len() as u64;
    report.segments += group.image.parts().iter().count() as u64;
    let in_packs = group.image.dead_bytes_in_packs();
    report.segment_bytes += group.image.parts().bytes() + in_packs;
    report.dead_bytes += group.image.parts().dead_bytes(group.image.state()) + in_packs;
    report.findings.append(&mut worst_of(group.findings, names));
    checked
}

/// As many findings as are listed of a group, the worst first, and one more that says how many were left out.
fn worst_of(mut findings: Vec<Finding>, names: &GroupNames) -> Vec<Finding> {
    findings.sort_by_key(|finding| Reverse(finding.severity));
    let Some(first_left_out) = findings.get(FINDINGS_MAX) else { return findings };
    let severity = first_left_out.severity;
    let text = format!("{} more findings are not listed, none of them worse than this one", findings.len() - FINDINGS_MAX);
    let problem = first_left_out.problem;
    findings.truncate(FINDINGS_MAX);
    findings.push(Finding { severity, text, ..finding(names, problem) });
    findings
}

/// Folders that look like groups and do not say which they are, in the store and in landing; and those that cannot be looked into.
fn strays(store: &StoreReader, listing: &Listing, report: &mut CheckReport) -> Result<()> {
    for (source, error) in &listing.unlisted {
        let object = format!("{}/{source}", names::groups());
        let text = format!("the groups of {source} cannot be listed, and are not checked: {error}");
        let base = finding(source, unchecked(error));
        report.findings.push(Finding { object: Some(object), text, ..base });
    }
    for names in &listing.strays {
        let object = names.description().to_string();
        let text = format!(
            "{object} is missing, so the receiver does not serve this group: put it back from a copy of the store, or from a group \
             of the same names in another store. `farside store recover` reads by its names what there is"
        );
        report.findings.push(Finding { object: Some(object), text, ..finding(names, Problem::Description) });
    }
    // † What is staged of a group whose description is lost is not to be deleted.
    let known: BTreeSet<&GroupNames> = listing.groups.iter().chain(&listing.strays).collect();
    let is_known =
        |names: &GroupNames| known.contains(names) || listing.unlisted.iter().any(|(source, _)| *source == names.source);
    for names in store.groups_in_landing()?.iter().filter(|names| !is_known(names)) {
        let text = format!("landing/{names} is of no group of this store; it may be deleted");
        let base = finding(names, Problem::Strange);
        report.findings.push(Finding { severity: Severity::Warning, object: Some(format!("landing/{names}")), text, ..base });
    }
    Ok(())
}

struct GroupCheck<'s> {
    names: GroupNames,
    image: GroupImage,
    segments: &'s Segments,
    /// Of each volume; of an encrypted one perhaps none.
    keys: BTreeMap<VolumeId, ContentKeys>,
    /// Parts with something wrong: where, and what.
    bad: Vec<(PartNo, Fault)>,
    findings: Vec<Finding>,
}

#[derive(Clone, Debug)]
struct Fault {
    problem: Problem,
    lost: Lost,
    why: String,
}

/// What of a part is lost.
#[derive(Clone, Copy, Debug)]
enum Lost {
    All,
    Run(GranuleRun),
    /// Only what no reader looks at. † Whoever needs the part needs its file all the same.
    Nothing,
}

impl GroupCheck<'_> {
    fn check_all(
        &mut self,
        store: &StoreReader,
        read: &AtomicU64,
        progress: &(dyn Fn(u64) -> bool + Sync),
        torn: bool,
        report: &mut CheckReport,
    ) -> Result<()> {
        self.check_keys()?;
        self.check_segments(read, progress)?;
        self.check_layers();
        self.check_points()?;
        self.check_leftovers(torn, report)?;
        self.check_landing(store)?;
        self.check_checkpoints()
    }

    /// Reads every published segment in full.
    fn check_segments(&mut self, read: &AtomicU64, progress: &(dyn Fn(u64) -> bool + Sync)) -> Result<()> {
        let parts: Vec<(PartNo, Part)> = self.image.parts().iter().map(|(no, p)| (no, p.clone())).collect();
        for batch in parts.chunks(BATCH) {
            let checked = parallel(&*self.segments.backend, batch, |(_, part)| {
                let volume = self.image.state().volume(part.name.layer.volume).expect("a part's volume was claimed");
                let keys = self.keys.get(&part.name.layer.volume).expect("there are some for each volume");
                let faults = check_part(self.segments, volume.meta(), keys, part);
                read.fetch_add(part.bytes, Ordering::Relaxed);
                faults
            });
            for ((no, _), faults) in batch.iter().zip(checked) {
                self.bad.extend(faults?.into_iter().map(|fault| (*no, fault)));
            }
            if !progress(read.load(Ordering::Relaxed)) {
                return Err(StoreError::Stopped);
            }
        }
        index_all(&mut self.image, self.segments)?;
        Ok(())
    }

    /// Whether every key that a volume is encrypted with can be unwrapped by somebody.
    fn check_keys(&mut self) -> Result<()> {
        let sealed =
            |volume: &VolumeState| volume.meta().digest_key.seal().map(|seal| (seal.key, seal.mode, volume.meta().name.clone()));
        let sealed: Vec<_> = self.image.state().volumes().filter_map(|(_, volume)| sealed(volume)).collect();
        if sealed.is_empty() {
            return Ok(());
        }
        let stored = wrappings(&*self.segments.backend, &self.names)?;
        // † Others may open the key as well, but who keeps the secret of this one has nothing.
        for (number, why) in stored.iter().filter_map(|stored| Some((stored.number, stored.fault()?))) {
            let object = self.names.key(number).to_string();
            let text = format!(
                "the wrapped key {object} cannot be used: {why}; put it back from {KEY_COPIES}, or wrap the key once more with what opens \
                 another of its wrappings (`farside key wrap`) and remove this one"
            );
            self.findings.push(Finding { object: Some(object), text, ..finding(&self.names, Problem::Key) });
        }
        let whole = || stored.iter().filter(|stored| stored.fault().is_none());
        let is_held = |key, mode| whole().filter_map(|stored| stored.of(&self.names, mode)).any(|held| held.key() == key);
        for (key, _, volume) in sealed.into_iter().filter(|(key, mode, _)| !is_held(*key, *mode)).collect::<Vec<_>>() {
            let text = format!(
                "volume {volume} is encrypted with the key {key}, of which the store holds no whole wrapping: nothing of it can be restored \
                 until one is put back, from {KEY_COPIES}"
            );
            self.findings.push(Finding { volume: Some(volume), text, ..finding(&self.names, Problem::Key) });
        }
        Ok(())
    }

    /// Whether every layer's digest binds the parts that its record names; as long as none of them was given up.
    fn check_layers(&mut self) {
        let mut footers: BTreeMap<LayerKey, Vec<[u8; 32]>> = BTreeMap::new();
        for (_, part) in self.image.parts().iter() {
            footers.entry(part.name.layer).or_default().push(part.footer_digest);
        }
        for (key, footers) in footers {
            let Some(fact) = self.image.state().layer(&key) else { continue };
            if footers.len() == fact.part_count as usize && layer_digest(&key, &footers) != fact.digest {
                let volume = self.image.state().volume(key.volume).map(|v| v.meta().name.clone());
                let text = format!("layer {key}, published in slot {}: its digest is not that of its parts", fact.slot);
                self.findings.push(Finding { volume, text, ..finding(&self.names, Problem::LayerDigest) });
            }
        }
    }

    /// Whether every point covers its members, and which points the bad parts spoil.
    fn check_points(&mut self) -> Result<()> {
        let mut spoiled: BTreeMap<usize, Vec<Slot>> = BTreeMap::new();
        let points: Vec<_> = self.image.state().points().values().cloned().collect();
        let before = self.findings.len();
        for point in &points {
            for member in &point.members {
                self.check_member(point.slot, member.key.volume, member.volume_bytes, &mut spoiled)?;
            }
        }
        let is_fault = |finding: &Finding| finding.severity == Severity::Error;
        let faults = !self.bad.is_empty() || self.findings[before..].iter().any(is_fault);
        let now = if faults { self.state_now()? } else { None };
        let is_kept = |point: &Slot| now.as_ref().is_none_or(|now| now.points().contains_key(point));
        let of_points = self.findings.split_off(before);
        self.findings.extend(of_points.into_iter().filter(|finding| finding.points.iter().all(is_kept)));
        spoiled.values_mut().for_each(|points| points.retain(is_kept));
        for (i, (no, fault)) in self.bad.iter().enumerate() {
            let part = self.image.parts().get(*no).expect("it was checked");
            let PartName { layer, number } = part.name;
            if now.as_ref().is_some_and(|now| now.is_given_up(&layer, number) || now.may_be_forgotten(&layer)) {
                continue; // and so may have been deleted
            }
            let volume = self.image.state().volume(part.name.layer.volume).expect("a part's volume was claimed").meta();
            let head = self.image.head(volume.id).is_some_and(|head| uses(head, *no, fault.lost));
            let points = spoiled.remove(&i).unwrap_or_default();
            let region = match fault.lost {
                Lost::Run(run) => Some(volume.geometry.region_of(run.start)),
                Lost::All | Lost::Nothing => None,
            };
            let where_ = region.map_or_else(String::new, |r| format!(", region {r}"));
            let needed = match (points.as_slice(), head) {
                ([], false) => "no retained point needs it".to_owned(),
                (points, _) if matches!(fault.lost, Lost::Nothing) => {
                    let whose =
                        if points.is_empty() { "the next points".to_owned() } else { format!("points {}", listed(points)) };
                    format!(
                        "its content is whole, and {whose} need it: bring the file back from a copy of the store, delete nothing, and look at the disk"
                    )
                }
                ([], true) => "the next points need it; `farside volume resync` sends it again".to_owned(),
                (points, _) => {
                    format!("points {} need it: restore another one, or bring the file back from a copy", listed(points))
                }
            };
            let at = self.segments.locate(&volume.name, part);
            let object = at.object.to_string();
            let text = format!("volume {}{where_}: segment {at} {}; {needed}", volume.name, fault.why);
            let severity = if points.is_empty() && !head { Severity::Warning } else { Severity::Error };
            let base = finding(&self.names, fault.problem);
            let volume = Some(volume.name.clone());
            self.findings.push(Finding { severity, volume, points, head, region, object: Some(object), text, ..base });
        }
        Ok(())
    }

    /// The ledger as it is by now, if it goes on from what we have looked at: whatever was given up since is no loss.
    fn state_now(&self) -> Result<Option<State>> {
        let state = self.image.state();
        let now = replay(&*self.segments.backend, &self.names, state.group(), |_| {})?.image;
        let Some(position) = state.position() else { return Ok(None) };
        // † Where records go, so much may have been written meanwhile that replay has forgotten ours.
        let number = CheckpointPlace::covering(position.slot, checkpoint::span()).number;
        let goes_on = now.state().holds(&position)
            || match checkpoint::digests(&*self.segments.backend, &self.names, state.group(), number)? {
                Some(Ok(digests)) => digests.at(position.slot) == Some(position.digest),
                Some(Err(_)) | None => false,
            };
        Ok(goes_on.then(|| now.state().clone()))
    }

    fn check_member(
        &mut self,
        point: Slot,
        volume: VolumeId,
        volume_bytes: u64,
        spoiled: &mut BTreeMap<usize, Vec<Slot>>,
    ) -> Result<()> {
        let meta = self.image.state().volume(volume).expect("a member was claimed").meta().clone();
        let image = self.image.image_at(volume, point, |_, part| match self.segments.footer(&meta.name, part) {
            Ok(footer) => Ok(PartRuns::Known(runs_of(&footer))),
            Err(FooterFault::Damaged(_)) => self.segments.damaged(part, Parts::told_by(self.image.state(), part)),
            Err(FooterFault::Store(error)) => Err(error),
        })?;
        for (i, (no, fault)) in self.bad.iter().enumerate() {
            if uses(&image, *no, fault.lost) {
                spoiled.entry(i).or_default().push(point);
            }
        }
        let granules = volume_bytes.div_ceil(meta.geometry.granule_bytes());
        let whole = GranuleRun { start: GranuleIndex(0), count: granules };
        let base =
            Finding { volume: Some(meta.name.clone()), points: vec![point], ..finding(&self.names, Problem::PointIncomplete) };
        let mut known = image.index.clone();
        // What a damaged part may have held has its own finding.
        image.unknown.extents(whole).for_each(|e| known.apply(e, |_, _| {}));
        if let Some(granule) = known.first_absent(whole) {
            let region = meta.geometry.region_of(granule);
            let text = format!("volume {}, point {point}, region {region}: no layer says what is there", meta.name);
            self.findings.push(Finding { severity: Severity::Error, region: Some(region), text, ..base.clone() });
        }
        if let Some(extent) = image.index.extents(whole).find(|e| e.content == Content::Unreadable) {
            let region = meta.geometry.region_of(extent.run.start);
            let text = format!(
                "volume {}, point {point}, region {region}: the source could not read it (restore with `--allow-degraded`)",
                meta.name
            );
            let problem = Problem::PointDegraded;
            self.findings.push(Finding { severity: Severity::Warning, problem, region: Some(region), text, ..base });
        }
        Ok(())
    }

    /// Objects that no accepted record names.
    fn check_leftovers(&mut self, torn: bool, report: &mut CheckReport) -> Result<()> {
        let backend = &*self.segments.backend;
        let mut listed = Vec::new();
        list_all(&*self.segments.backend, Some(&self.names.folder()), |l| listed.push(l))?;
        let state = self.image.state();
        let (mut above, mut above_bytes) = (0_u64, 0);
        // The receiver may have appended since the ledger was read: a claim counts as lost only if it is still not there.
        let end = Slots::list(backend, &self.names)?.end().max(self.image.state().next_slot().0);
        // † A name tells where a batch begins, and not how many slots it takes: what lies beyond the names may be before the next record.
        let mut exact = None;
        let mut is_beyond = |this: &Self, slot: u64| -> Result<bool> {
            if slot <= end {
                return Ok(false);
            }
            let next = match exact {
                Some(next) => next,
                None => this.state_now()?.map_or(end, |state| state.next_slot().0).max(end),
            };
            exact = Some(next);
            Ok(slot > next)
        };
        // What came last says how late it is there, at least.
        let now_ms = listed.iter().map(|object| object.created_ms).max().unwrap_or(0);
        for object in listed {
            let base = Finding { object: Some(object.name.to_string()), ..finding(&self.names, Problem::Foreign) };
            let Some(known) = self.names.parse(&object.name) else {
                let text = format!("{} is none of Farside's files", object.name);
                self.findings.push(Finding { severity: Severity::Warning, text, ..base });
                continue;
            };
            if let GroupObject::Lease(_) = known {
                let age_ms = u64::try_from(now_ms.saturating_sub(object.created_ms)).unwrap_or(0);
                if let Some(text) = leases::in_words(backend, &object.name, age_ms)? {
                    self.findings.push(Finding { severity: Severity::Note, problem: Problem::Lease, text, ..base });
                }
                continue;
            }
            if let GroupObject::Pack(pack) = known {
                if let Some(used) = state.packs().get(&pack) {
                    // (It may hold what came to nothing as well.)
                    if object.bytes < used.bytes {
                        let (bytes, parts) = (object.bytes, used.bytes);
                        let text = format!("pack {} has {bytes} bytes, and {parts} of published parts", object.name);
                        let problem = Problem::SegmentCorrupt;
                        self.findings.push(Finding { severity: Severity::Warning, problem, text, ..base });
                    }
                    continue;
                }
                report.unnamed_bytes += object.bytes;
                if torn {
                    above += 1;
                    above_bytes += object.bytes;
                    continue;
                }
                let (severity, problem, what) = if is_beyond(self, pack.slot().0)? {
                    let what = "was put for a slot beyond the ledger's end: its newest records are lost";
                    (Severity::Error, Problem::LedgerTorn, what)
                } else if pack.is_decided(Slot(end)) {
                    (Severity::Note, Problem::AwaitsDeletion, "holds no part that is needed and waits for its deletion")
                } else {
                    (Severity::Note, Problem::Staged, "is of a publication that did not come to pass, or not yet")
                };
                let text = format!("pack {} ({} bytes) {what}", object.name, object.bytes);
                self.findings.push(Finding { severity, problem, text, ..base });
                continue;
            }
            let GroupObject::Segment { volume, term, seq, number } = known else { continue };
            let id = volume_id(&self.names.source, &self.names.group, &volume);
            let part = PartName { layer: LayerKey { volume: id, term, seq }, number };
            if self.image.parts().id(&part).is_some() {
                continue;
            }
            report.unnamed_bytes += object.bytes;
            let state = self.image.state();
            let given_up = state.is_given_up(&part.layer, number) || state.may_be_forgotten(&part.layer);
            let merging = term.is_merge() && self.image.state().may_be_merged(&part.layer);
            let strange = self.image.state().volume(id).is_none_or(|v| term > v.term());
            let since = Slot(term.0) >= self.image.state().next_slot();
            if torn {
                above += 1;
                above_bytes += object.bytes;
                continue;
            }
            let (severity, problem, what) = if given_up {
                (Severity::Note, Problem::AwaitsDeletion, "was given up by a record and waits for its deletion")
            } else if self.image.is_debris(&part) {
                (Severity::Warning, Problem::Orphan, "is named by no record; the receiver sweeps it")
            } else if merging {
                (
                    Severity::Note,
                    Problem::Staged,
                    "is of a merge that is under way, or was cut short: the receiver decrees it away",
                )
            } else if !term.is_merge() && is_beyond(self, term.0.saturating_add(1))? {
                (Severity::Error, Problem::LedgerTorn, "is of a claim that is not in the ledger: its newest records are lost")
            } else if strange && !since {
                (Severity::Warning, Problem::Strange, "is of a claim that the ledger does not hold; it is kept")
            } else {
                (Severity::Note, Problem::Staged, "is staged and not published yet")
            };
            let text = format!("segment {} ({} bytes) {what}", object.name, object.bytes);
            self.findings.push(Finding { severity, problem, volume: Some(volume), text, ..base });
        }
        if above > 0 {
            let text = format!("{above} segments ({above_bytes} bytes) may be named by the records from the torn one on");
            self.findings.push(Finding { severity: Severity::Note, text, ..finding(&self.names, Problem::Staged) });
        }
        Ok(())
    }

    fn warn(&mut self, problem: Problem, object: String, text: String) {
        let base = finding(&self.names, problem);
        self.findings.push(Finding { severity: Severity::Warning, object: Some(object), text, ..base });
    }

    /// Holds every checkpoint against what replay from slot 0 gives, as far as the records are whole. † Whoever writes the ledger goes on, and deletes what
    /// newer checkpoints stand for: what is found is said only of a ledger that still has the anchor by which it was looked at.
    fn check_checkpoints(&mut self) -> Result<()> {
        let (before, mut now) = (self.findings.len(), None);
        for _ in 0..CHECKPOINT_TURNS {
            self.check_checkpoints_by(now.as_ref())?;
            if self.findings.len() == before {
                return Ok(());
            }
            let anchor = checkpoint::anchor(now.as_ref().unwrap_or_else(|| self.image.state()));
            match self.state_now()? {
                Some(newer) if checkpoint::anchor(&newer) != anchor => now = Some(newer),
                _ => return Ok(()),
            }
            self.findings.truncate(before);
        }
        self.check_checkpoints_by(now.as_ref())
    }

    /// The same, once. `now`: the ledger as it is, if it went on.
    fn check_checkpoints_by(&mut self, now: Option<&State>) -> Result<()> {
        let backend = &*self.segments.backend;
        let group = self.image.state().group();
        let slots = Slots::list(backend, &self.names)?;
        let mut there = checkpoint::list(backend, &self.names)?;
        for number in checkpoint::strays(&there, &slots) {
            if checkpoint::read(backend, &self.names, group, number, None)?.is_ok() {
                continue;
            }
            there.remove(&number);
            let object = self.names.checkpoint(number).to_string();
            let text = format!("{object} stands for nothing: no checkpoint is before it and no record beyond; it may be deleted");
            self.warn(Problem::Foreign, object, text);
        }
        let newest = there.last().copied();
        // Of an earlier Farside's only the chain is held against what is there.
        let mut earlier = BTreeMap::new();
        for number in newest.map_or(0..0, |newest| 0..newest + 1) {
            if let Ok((root, digest)) = checkpoint::read_root(backend, &self.names, group, number)?
                && root.is_of_an_earlier_version()
            {
                earlier.insert(number, digest);
            }
        }
        if let Some((last, _)) = earlier.last_key_value() {
            let text = format!(
                "checkpoints up to {} are of an earlier Farside, and are not read: openings replay all records until the next one is written",
                self.names.checkpoint(*last)
            );
            self.findings.push(Finding { severity: Severity::Note, text, ..finding(&self.names, Problem::Checkpoint) });
        }
        let previous = Cell::new(Some([0; 32]));
        let (mut expected, mut told) = (BTreeMap::new(), BTreeMap::new());
        let mut made_anew = |image: &GroupImage| {
            let Some(place) = CheckpointPlace::completed_by(image.state(), checkpoint::span()) else { return };
            if let Some(digests) = SlotDigests::completed_by(image.state(), checkpoint::span()) {
                told.insert(place.number, blake3::hash(&digests.encode(group)));
            }
            if newest.is_some_and(|newest| place.number <= newest)
                && let Some(before) = previous.get()
            {
                if let Some(digest) = earlier.get(&place.number) {
                    return previous.set(Some(*digest));
                }
                let encoded = checkpoint::encode(place, before, image);
                previous.set(CheckpointRoot::decode(&encoded.root, group, place).ok().map(|(_, digest)| digest));
                expected.insert(place.number, (blake3::hash(&encoded.root), blake3::hash(&encoded.state)));
            }
        };
        let mut whole = replay_all_slots(backend, &self.names, GroupImage::new(group), &mut made_anew)?;
        // † Deleting a checkpoint is of use only to who has every record that it covers.
        let has_all = whole.torn.is_none() && whole.image.state().next_slot() >= self.image.state().next_slot();
        if let Some(torn) = &whole.torn
            && let Some((image, root)) = self.gone_below(torn.slot, now)?
        {
            let kept_from = image.state().next_slot();
            previous.set(Some(root));
            whole = replay_all_slots(backend, &self.names, image, &mut made_anew)?;
            self.check_single_records(kept_from, now)?;
        }
        for slot in &whole.strays {
            let object = self.names.record(*slot).to_string();
            let text =
                format!("{object} stands for nothing: an object of several records before it takes its slot; it may be deleted");
            self.warn(Problem::Foreign, object, text);
        }
        for slot in &whole.spoiled {
            let object = self.names.record(*slot).to_string();
            let text = format!(
                "ledger record {object} is whole, and the records before it that its object repeats for readers are damaged or others: \
                 they are read one by one; nothing is lost"
            );
            self.warn(Problem::Repeats, object, text);
        }
        let next = newest.map_or(0, |newest| newest + 1);
        let is_begun = block_on(backend.size(&self.names.checkpoint_state(next)))?.is_some();
        if is_begun {
            let object = self.names.checkpoint(next).to_string();
            let text = format!(
                "checkpoint {object} is missing, and its state is there: it was not completed, or was lost; the ledger's records are whole \
                 without it, and the receiver writes it again when it starts"
            );
            self.warn(Problem::Checkpoint, object, text);
        }
        let Some(newest) = newest else { return Ok(()) };
        let (which_are, comma, again) = if has_all {
            let again = "stop the receiver, delete this checkpoint and all after it, roots, states and digests, and the receiver writes them again \
                         when it starts";
            (", which are whole", ",", again)
        } else {
            ("", "", "put it back from a copy of the store, and delete none: records that checkpoints stand for are gone")
        };
        for number in (0..=newest).filter(|number| !earlier.contains_key(number)) {
            for (name, state) in [(self.names.checkpoint(number), false), (self.names.checkpoint_state(number), true)] {
                let wanted = expected.get(&number).map(|(root, whole)| if state { whole } else { root });
                let found = get(backend, &name, CHECKPOINT_STATE_BYTES_MAX)?;
                let is_old = number + checkpoint::STATES <= newest + u64::from(is_begun);
                let is_usable = || match is_old && !state {
                    true => Ok::<_, StoreError>(checkpoint::read_root(backend, &self.names, group, number)?.is_ok()),
                    false => Ok(checkpoint::read(backend, &self.names, group, number, None)?.is_ok()),
                };
                let (severity, what) = match (found, wanted) {
                    (Some(Ok(bytes)), Some(wanted)) if blake3::hash(&bytes) == *wanted => continue,
                    (Some(Ok(_)), None) if is_usable()? => continue,
                    (None, _) if state && is_old => continue, // its writer deleted it
                    (None, Some(_)) if has_all => {
                        (Severity::Warning, "is missing; the ledger's records are whole without it".to_owned())
                    }
                    (None, Some(_)) => (Severity::Warning, "is missing: put it back from a copy of the store".to_owned()),
                    (Some(_), Some(_)) if !state && checkpoint::read_root(backend, &self.names, group, number)?.is_ok() => {
                        (Severity::Error, format!("is of another history than the ledger's records{which_are}: {again}"))
                    }
                    (Some(_), Some(_)) => {
                        (Severity::Warning, format!("is not what the ledger's records{which_are}{comma} give: {again}"))
                    }
                    (_, None) => (Severity::Error, "cannot be used: put it back from a copy of the store".to_owned()),
                };
                let (object, text) = (Some(name.to_string()), format!("checkpoint {name} {what}"));
                self.findings.push(Finding { severity, object, text, ..finding(&self.names, Problem::Checkpoint) });
            }
        }
        let of_digests = |name: &ObjectName| match self.names.parse(name) {
            Some(GroupObject::CheckpointDigests(number)) => Some(number),
            _ => None,
        };
        let first_digests = block_on(backend.names(&self.names.checkpoints()))?.iter().filter_map(of_digests).min();
        for number in 0..=newest {
            let name = self.names.checkpoint_digests(number);
            if checkpoint::read_root(backend, &self.names, group, number)?.is_err() {
                continue; // said above
            }
            let why = match checkpoint::digests(backend, &self.names, group, number)? {
                Some(Ok(digests)) if told.get(&number).is_some_and(|told| *told != blake3::hash(&digests.encode(group))) => {
                    "it is not what the ledger's records give".to_owned()
                }
                Some(Ok(_)) => continue,
                // Of an earlier Farside: then its records stay.
                None if first_digests.is_none_or(|first| number < first) => continue,
                None => "it is missing".to_owned(),
                Some(Err(bad)) => bad.why,
            };
            let text = format!(
                "{name}: {why}; whether the ledger went through a position so old is told by its records, as far as they are there: put it back from \
                 a copy of the store"
            );
            self.warn(Problem::Checkpoint, name.to_string(), text);
        }
        if let Some(torn) = whole.torn.filter(|torn| torn.slot < self.image.state().next_slot()) {
            let text = format!("ledger record {}: {}; a checkpoint stands for it", torn.file, torn.why);
            self.warn(Problem::LedgerTorn, torn.file, text);
        }
        Ok(())
    }

    /// Where a record is not there since it is asked for by nobody: the checkpoint from whose end on all are there, and its root's digest.
    fn gone_below(&self, torn: Slot, now: Option<&State>) -> Result<Option<(GroupImage, [u8; 32])>> {
        let (backend, state) = (&*self.segments.backend, now.unwrap_or_else(|| self.image.state()));
        let number = CheckpointPlace::covering(torn, checkpoint::span()).number;
        let Some(newest) = checkpoint::anchor(state).filter(|anchor| number <= *anchor) else { return Ok(None) };
        let is_there = block_on(backend.size(&self.names.record(torn)))?.is_some();
        if is_there || block_on(backend.size(&self.names.checkpoint_digests(number)))?.is_none() {
            return Ok(None);
        }
        for anchor in (number..=newest).rev().filter(|number| checkpoint::may_be_anchor(*number)) {
            if let Ok((_, image)) = checkpoint::read(backend, &self.names, state.group(), anchor, None)?
                && let Ok((_, root)) = checkpoint::read_root(backend, &self.names, state.group(), anchor)?
            {
                return Ok(Some((image, root)));
            }
        }
        Ok(None)
    }

    /// Of the records below a slot, most of which are gone, those that replay remembers.
    fn check_single_records(&mut self, below: Slot, now: Option<&State>) -> Result<()> {
        let (backend, state) = (&*self.segments.backend, now.unwrap_or_else(|| self.image.state()));
        let remembered: Vec<Slot> = state.remembers_singly().take_while(|slot| *slot < below).collect();
        let found = parallel(backend, &remembered, |slot| find_record(backend, &self.names, *slot));
        let mut bad = Vec::new();
        for (slot, found) in remembered.into_iter().zip(found) {
            match found? {
                Ok((_, digest)) if state.digest_at(slot) == Some(digest) => {}
                Ok(_) => bad.push((slot, "it is not the one of this ledger".to_owned())),
                Err(unusable) => bad.push((slot, unusable.to_string())),
            }
        }
        for (slot, why) in bad {
            let object = self.names.record(slot).to_string();
            let text = format!("ledger record {object}: {why}; a checkpoint stands for it");
            self.warn(Problem::LedgerTorn, object, text);
        }
        Ok(())
    }

    /// Parts in landing of a claim that the ledger does not hold, though its slot must have been there: a claim that was lost
    /// may have left nothing else.
    fn check_landing(&mut self, store: &StoreReader) -> Result<()> {
        let newest = store.terms_in_landing(&self.names)?.into_iter().next_back();
        let end = Slots::list(&*self.segments.backend, &self.names)?.end().max(self.image.state().next_slot().0);
        if let Some(term) = newest.filter(|term| term.0 >= end) {
            let text = format!(
                "landing/{} holds parts of a claim in slot {term}, which is not in the ledger: its newest records are lost",
                self.names
            );
            let object = Some(format!("landing/{}", self.names));
            self.findings.push(Finding { object, text, ..finding(&self.names, Problem::LedgerTorn) });
        }
        Ok(())
    }
}

fn finding(names: &dyn Display, problem: Problem) -> Finding {
    Finding {
        severity: Severity::Error,
        problem,
        group: names.to_string(),
        volume: None,
        points: Vec::new(),
        head: false,
        region: None,
        object: None,
        text: String::new(),
    }
}

/// The first of some points.
fn listed(points: &[Slot]) -> String {
    let ids: Vec<_> = points.iter().take(10).map(ToString::to_string).collect();
    let more = if points.len() > 10 { ", …" } else { "" };
    format!("{}{more}", ids.join(", "))
}

/// Whether an image takes anything of a part, or of one run of it.
fn uses(image: &VolumeImage, no: PartNo, lost: Lost) -> bool {
    let run = match lost {
        Lost::All | Lost::Nothing => GranuleRun { start: GranuleIndex(0), count: u64::MAX },
        Lost::Run(run) => run,
    };
    image.index.extents(run).chain(image.unknown.extents(run)).any(|e| e.part == no)
}

/// What is wrong with a part.
fn check_part(segments: &Segments, volume: &VolumeMeta, keys: &ContentKeys, part: &Part) -> Result<Vec<Fault>> {
    match read_part(segments, volume, keys, part) {
        Err(StoreError::NotFound { .. }) => {
            let why = "went away while it was read".to_owned();
            Ok(vec![Fault { problem: Problem::SegmentMissing, lost: Lost::All, why }])
        }
        other => other,
    }
}

/// Reads a part in full. First all of it in one go; if that finds anything, frame by frame, to name every region.
fn read_part(segments: &Segments, volume: &VolumeMeta, keys: &ContentKeys, part: &Part) -> Result<Vec<Fault>> {
    let all = |problem, why: String| vec![Fault { problem, lost: Lost::All, why }];
    let at_object = segments.locate(&volume.name, part);
    let (object, end) = (&at_object.object, at_object.byte(part.bytes));
    let alone = !at_object.is_pack(&segments.names);
    let longer = match block_on(segments.backend.size(object)) {
        Err(StoreError::Unreadable { source, .. }) => return Ok(all(Problem::SegmentCorrupt, source.to_string())),
        Err(error) => return Err(error),
        Ok(None) => return Ok(all(Problem::SegmentMissing, "is missing".into())),
        Ok(Some(bytes)) if bytes < end => {
            let why = format!("has {bytes} bytes; {end} were published");
            return Ok(all(Problem::SegmentCorrupt, why));
        }
        Ok(Some(bytes)) => (alone && bytes > end).then(|| Fault {
            problem: Problem::SegmentCorrupt,
            lost: Lost::Nothing,
            why: format!("has {bytes} bytes, and only the {} that were published are known", part.bytes),
        }),
    };
    let footer = match segments.footer(&volume.name, part) {
        Ok(footer) => footer,
        Err(FooterFault::Damaged(why)) => return Ok(all(Problem::SegmentCorrupt, format!("cannot be used: {why}"))),
        Err(FooterFault::Store(error)) => return Err(error),
    };
    // What the medium does not give is damage of this segment.
    let read = |offset: u64, len: u64| match block_on(segments.backend.get_range(object, at_object.byte(offset), len)) {
        Err(StoreError::Unreadable { source, .. }) => Ok(Err(format!("{source} at byte {offset}"))),
        other => other.map(Ok),
    };
    let mut verifier = PartVerifier::new(*footer.id(), keys);
    let mut at = 0;
    let whole = loop {
        if at == part.bytes {
            break verifier.finish().map(drop).map_err(|e| e.to_string());
        }
        let bytes = match read(at, READ_BYTES.min(part.bytes - at))? {
            Ok(bytes) => bytes,
            Err(why) => break Err(why),
        };
        if bytes.is_empty() {
            return Ok(all(Problem::SegmentCorrupt, "became shorter while it was read".into()));
        }
        at += bytes.len() as u64;
        if let Err(error) = verifier.feed(&bytes) {
            break Err(error.to_string());
        }
    };
    let mut faults = Vec::from_iter(longer);
    let Err(error) = whole else { return Ok(faults) };
    let damaged = faults.len();
    let region = |run: &GranuleRun| footer.id().geometry.region_of(run.start);
    let (mut decoder, mut content) = (FrameDecoder::new(keys), Vec::new());
    for frame in footer.frames().iter().filter(|f| f.kind == RunKind::Data) {
        let stored = read(u64::from(frame.offset), u64::from(frame.stored_bytes))?;
        let decoded = stored.and_then(|s| decoder.check(&footer, frame, &s, &mut content).map_err(|e| e.to_string()));
        let Err(error) = decoded else { continue };
        match faults[damaged..].last_mut() {
            // One for each region: who needs any of it needs what is between.
            Some(Fault { lost: Lost::Run(run), .. }) if region(run) == region(&frame.run) => {
                run.count = frame.run.end().0 - run.start.0;
            }
            _ => {
                let why = format!("is corrupt: {error}");
                faults.push(Fault { problem: Problem::SegmentCorrupt, lost: Lost::Run(frame.run), why });
            }
        }
    }
    if faults.is_empty() {
        let why = format!("is corrupt where no reader looks: {error}");
        faults.push(Fault { problem: Problem::SegmentCorrupt, lost: Lost::Nothing, why });
    }
    Ok(faults)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
