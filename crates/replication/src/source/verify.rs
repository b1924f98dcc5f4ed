//! `verify`: the whole volume against what is published, in place (T6).
//!
//! Owns the walk over the volume: which regions are asked about, what became of them, what is told. Nothing is switched for
//! it, so streaming goes on. A *cold* region equals what is published, or we made a mistake: its digests are asked for, its
//! content is read, and it is judged only if it is cold *after* both.
//!
//! Invariant: from before the digests are asked for until the answer is heard the regions of a chunk are *mentioned*, so none
//! of them begins to cool. One that is cold at the end was therefore cold, or past the last look at who mentions it, when the
//! question went out: all that was ever written to it was published by then, and nothing has been written to it since. (One
//! that was hot meanwhile could show an old digest beside new content.)
//!
//! Regions found hot are compared at the end, all in one ordinary Compare; what differs there is what replication is for. A
//! cold region that differs gets its bit set durably, then joins an ordinary Compare too: no layer touches a region that is
//! not hot (T3), and an `unreadable` run is never equal.
//!
//! Deliberately not here: durability. A verify that was cut short by the end of the process begins anew when asked for.

use farside_region::{GranuleRun, RegionIndex, RegionRange, RegionSet, VolumeId, mutation};
use farside_wire::{Compared, DIGEST_GRANULES_MAX, DigestAnswer, DigestQuery, Features, RequestId, SourceMessage};

use super::api::{Action, Nanos, SECOND, VerifyChunk, VerifyRead};
use super::volume::{Volume, region_bytes};
use super::{Link, Phase, Source};

/// What was said so long before its line ended has been heard: a line that carries nothing ends sooner.
const HEARD_AFTER: Nanos = 60 * SECOND;

/// A verify that was asked for, until it ends.
#[derive(Debug)]
pub(super) struct Verify {
    stage: Stage,
    /// Kept hot, to be compared at the end.
    hot: RegionSet,
    /// Their bits are being set.
    heating: RegionSet,
    /// Waiting for, or in, a Compare that is not published to its end.
    comparing: RegionSet,
}

/// ```text
/// Walking(cursor) ⇄ Asked ─► Read ─► Walking …        ─► Comparing ─► (over)
///    ▲               └──disconnect: asked anew──┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Everything below the cursor is done.
    Walking { cursor: RegionIndex },
    /// The digests of these regions are asked for.
    Asked { id: RequestId, chunk: RegionRange },
    /// The driver reads these regions.
    Reading { id: RequestId, chunk: RegionRange },
    /// Every region was looked at; what was hot, or differs, is being compared.
    Comparing,
}

/// How far a verify is, or how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// When it was asked for, on the clock of `now`.
    pub started: Nanos,
    /// When it ended.
    pub ended: Option<Nanos>,
    /// How it stands.
    pub outcome: VerifyOutcome,
    /// The volume's size when it began.
    pub total_bytes: u64,
    /// Compared in place so far: cold regions.
    pub cold_bytes: u64,
    /// Found hot so far: left to an ordinary Compare.
    pub hot_bytes: u64,
    /// Cold regions that differ from what is published: an error of ours. They are sent.
    pub differing: RegionSet,
    /// Regions in which something could not be read.
    pub unreadable: RegionSet,
}

/// How a verify stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyOutcome {
    /// Under way, or waiting for the receiver or the end of a pause.
    Running,
    /// Everything was compared, and what differed is published.
    Done,
    /// A person, or the failed intent map, asked for a compare of everything: that finds the same, and more.
    Superseded,
    /// The volume refuses to go on, see its state.
    Refused,
    /// The daemon stops.
    Stopped,
}

impl VerifyReport {
    /// Bytes of the volume that were looked at.
    pub fn done_bytes(&self) -> u64 {
        (self.cold_bytes + self.hot_bytes).min(self.total_bytes)
    }
}

impl Verify {
    /// Whether a region may not begin to cool for its sake.
    pub(super) fn mentions(&self, region: RegionIndex) -> bool {
        let in_chunk = match self.stage {
            Stage::Asked { chunk, .. } | Stage::Reading { chunk, .. } => {
                chunk.start <= region && region.0 < chunk.start.0 + chunk.count
            }
            Stage::Walking { .. } | Stage::Comparing => false,
        };
        (in_chunk && !mutation::on("T6 verify lets its regions cool"))
            || self.hot.contains(region)
            || self.heating.contains(region)
    }

    /// A difference is known, and not yet in a set that counts as owed.
    pub(super) fn is_heating(&self) -> bool {
        !self.heating.is_empty()
    }
}

impl Volume {
    /// The line has ended on which it was said that all is equal. What was said long before has been heard.
    pub(super) fn compared_unsaid(&mut self, now: Nanos) {
        self.compared = self.compared.take().filter(|(_, said)| said.is_none_or(|at| now < at.saturating_add(HEARD_AFTER)));
        if let Some((_, said)) = &mut self.compared {
            *said = None;
        }
    }

    /// Whether a region may not cool: what [`Volume::mentions`] says, and what a verify looks at.
    pub(super) fn keeps_hot(&self, region: RegionIndex) -> bool {
        self.mentions(region) || self.verify.as_ref().is_some_and(|v| v.mentions(region))
    }

    /// Ends a verify that is under way.
    pub(super) fn end_verify(&mut self, now: Nanos, outcome: VerifyOutcome) {
        if self.verify.take().is_some()
            && let Some(report) = &mut self.verify_report
        {
            report.outcome = outcome;
            report.ended = Some(now);
        }
    }
}

impl Source {
    /// A person asks for it. One that is under way goes on and answers both.
    pub(super) fn verify(&mut self, now: Nanos, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.verify.is_some() {
            return;
        }
        volume.verify = Some(Verify {
            stage: Stage::Walking { cursor: RegionIndex(0) },
            hot: RegionSet::new(),
            heating: RegionSet::new(),
            comparing: RegionSet::new(),
        });
        volume.verify_report = Some(VerifyReport {
            started: now,
            ended: None,
            outcome: VerifyOutcome::Running,
            total_bytes: volume.geometry().volume_bytes(),
            cold_bytes: 0,
            hot_bytes: 0,
            differing: RegionSet::new(),
            unreadable: RegionSet::new(),
        });
    }

    /// Goes on with every verify that can.
    pub(super) fn verify_on(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let ids: Vec<VolumeId> = self.volumes.values().filter(|v| v.verify.is_some()).map(|v| v.id()).collect();
        for id in ids {
            let (switching, busy) = (self.is_switching(id), self.verifies_now());
            let up = matches!(self.link, Link::Up { .. }) && self.phase == Phase::Running;
            let volume = self.volumes.get_mut(&id).expect("just listed");
            let may = up && volume.is_active() && volume.is_checked() && volume.reclaim.is_none();
            let verify = volume.verify.as_mut().expect("just listed");
            if let (false, Stage::Asked { chunk, .. } | Stage::Reading { chunk, .. }) = (may, verify.stage) {
                // The answer, or the term under which it was asked, is gone.
                verify.stage = Stage::Walking { cursor: chunk.start };
            }
            if matches!(verify.stage, Stage::Walking { cursor } if cursor.0 >= volume.meta.geometry.region_count()) {
                verify.stage = Stage::Comparing;
                let hot = std::mem::take(&mut verify.hot);
                self.heat_some(id, &hot, out);
            }
            let volume = self.volumes.get_mut(&id).expect("just listed");
            let compared = volume.has_compared();
            let verify = volume.verify.as_mut().expect("just listed");
            match verify.stage {
                // One chunk of the group at a time: what a receiver answers at once is bounded.
                Stage::Walking { cursor } if may && !busy => self.ask_chunk(id, cursor, out),
                Stage::Comparing if verify.heating.is_empty() && !switching && compared => {
                    volume.end_verify(now, VerifyOutcome::Done);
                    self.note_compared(id);
                }
                _ => {}
            }
        }
    }

    /// A volume was compared from end to end and is what is published: the ledger may say so of a point. † It is said until it may have been heard:
    /// the line may be down by then, or break.
    fn note_compared(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let is_equal = volume.verify_report.as_ref().is_some_and(|r| r.differing.is_empty() && r.unreadable.is_empty());
        let known = volume.held.zip(volume.published).filter(|_| is_equal);
        volume.compared = known.map(|(term, position)| (Compared { volume: id, term, position }, None));
    }

    pub(super) fn say_compared(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !matches!(self.link, Link::Up { .. }) {
            return;
        }
        let is_known = self.features.has(Features::COMPARED);
        let mut due = Vec::new();
        for volume in self.volumes.values_mut() {
            let Some((compared, None)) = volume.compared else { continue };
            if !is_known || volume.held != Some(compared.term) {
                volume.compared = None;
            } else if volume.is_checked() {
                volume.compared = Some((compared, Some(now)));
                due.push(compared);
            }
        }
        due.into_iter().for_each(|compared| self.send(SourceMessage::Compared(compared), out));
    }

    fn verifies_now(&self) -> bool {
        let busy = |v: &Verify| matches!(v.stage, Stage::Asked { .. } | Stage::Reading { .. });
        self.volumes.values().filter_map(|v| v.verify.as_ref()).any(busy)
    }

    fn ask_chunk(&mut self, id: VolumeId, cursor: RegionIndex, out: &mut Vec<Action>) {
        let request = self.next_request();
        let bytes = self.config.limits.verify_bytes;
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        let geometry = volume.geometry();
        let count = (bytes / geometry.region_bytes()).clamp(1, (DIGEST_GRANULES_MAX / geometry.region_granules()).max(1));
        let count = count.min(geometry.region_count() - cursor.0);
        let chunk = RegionRange { start: cursor, count };
        let Some(term) = volume.held else { return };
        volume.verify.as_mut().expect("the caller found it").stage = Stage::Asked { id: request, chunk };
        let query = DigestQuery { id: request, volume: id, term, run: granules_of(volume, chunk) };
        self.send(SourceMessage::Digests(query), out);
    }

    /// What the receiver could not answer, or nobody did, is asked again.
    pub(super) fn ask_chunk_again(&mut self, id: VolumeId) {
        if let Some(verify) = self.volumes.get_mut(&id).and_then(|v| v.verify.as_mut())
            && let Stage::Asked { chunk, .. } = verify.stage
        {
            verify.stage = Stage::Walking { cursor: chunk.start };
        }
    }

    /// The digests of a chunk; true if they were asked for here.
    pub(super) fn verify_digests(&mut self, answer: &DigestAnswer, out: &mut Vec<Action>) -> bool {
        let Some(volume) = self.volumes.get_mut(&answer.volume) else { return false };
        let Some(verify) = &mut volume.verify else { return false };
        let Stage::Asked { id, chunk } = verify.stage else { return false };
        if id != answer.id {
            return false;
        }
        verify.stage = Stage::Reading { id, chunk };
        let run = granules_of(volume, chunk);
        let count: u64 = answer.runs.iter().map(|r| r.granules()).sum();
        if (answer.start, count) != (run.start, run.count) {
            self.protocol_error("digests of other granules than asked for", out);
            return true;
        }
        let digest_key = volume.meta.digest_key;
        let (volume, runs) = (answer.volume, answer.runs.clone());
        out.push(Action::Verify(Box::new(VerifyChunk { volume, id, chunk, digest_key, runs })));
        true
    }

    /// The driver has read a chunk.
    pub(super) fn verify_read(&mut self, id: VolumeId, read: &VerifyRead, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let geometry = volume.geometry();
        let (Some(verify), Some(report)) = (&mut volume.verify, &mut volume.verify_report) else { return };
        let Stage::Reading { id: asked, chunk } = verify.stage else { return };
        if asked != read.id {
            return;
        }
        verify.stage = Stage::Walking { cursor: RegionIndex(chunk.start.0 + chunk.count) };
        let mut cold = RegionSet::new();
        cold.insert_range(chunk);
        cold.subtract(&read.hot);
        report.cold_bytes += region_bytes(&geometry, &cold);
        report.hot_bytes += region_bytes(&geometry, &read.hot);
        report.differing.union_with(&read.differing);
        report.unreadable.union_with(&read.unreadable);
        verify.hot.union_with(&read.hot);
        let mut wanted = read.differing.clone();
        wanted.union_with(&read.unreadable);
        if !read.differing.is_empty() {
            out.push(Action::Report { volume: Some(id), what: super::Report::ColdDiffers { regions: read.differing.clone() } });
        }
        self.heat_some(id, &wanted, out);
    }

    /// Bits first, then the compare: a region of a layer is hot (T3).
    fn heat_some(&mut self, id: VolumeId, regions: &RegionSet, out: &mut Vec<Action>) {
        if regions.is_empty() {
            return;
        }
        if mutation::on("T6 verify sends before the bit is durable") {
            return self.heated(id, regions);
        }
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        volume.verify.as_mut().expect("the caller found it").heating.union_with(regions);
        out.push(Action::Heat { volume: id, regions: regions.clone() });
    }

    pub(super) fn heated(&mut self, id: VolumeId, regions: &RegionSet) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        // † Also when the verify has ended meanwhile, by a stop or because the reader is gone: what it found differs, and must be
        // owed and stay hot until it was sent.
        volume.compare.union_with(regions);
        if let Some(verify) = &mut volume.verify {
            verify.heating.subtract(regions);
            verify.comparing.union_with(regions);
        }
    }

    /// Whether a verify found a difference whose bit is not durable yet: a planned stop waits for it, boundedly.
    pub fn is_heating(&self, id: VolumeId) -> bool {
        self.volumes.get(&id).and_then(|v| v.verify.as_ref()).is_some_and(Verify::is_heating)
    }

    /// The verify under way, or the newest one of this attach.
    pub fn verify_report(&self, id: VolumeId) -> Option<&VerifyReport> {
        self.volumes.get(&id)?.verify_report.as_ref()
    }

    pub(super) fn stop_verifies(&mut self, now: Nanos) {
        self.volumes.values_mut().for_each(|v| v.end_verify(now, VerifyOutcome::Stopped));
    }
}

impl Volume {
    /// What a verify left to a Compare is published.
    fn has_compared(&self) -> bool {
        let Some(verify) = &self.verify else { return true };
        let waits = |set: &RegionSet| verify.comparing.ranges().any(|r| r.iter().any(|region| set.contains(region)));
        !waits(&self.compare) && !self.frozen.values().any(|f| waits(&f.compare))
    }
}

fn granules_of(volume: &Volume, chunk: RegionRange) -> GranuleRun {
    let geometry = volume.geometry();
    let start = geometry.region_run(chunk.start).start;
    let end = geometry.region_run(RegionIndex(chunk.start.0 + chunk.count - 1)).end();
    GranuleRun { start, count: end.0 - start.0 }
}
