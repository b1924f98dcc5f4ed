//! One volume: what it owes, the layers it has under way, and where it stands with the ledger.
//!
//! Invariant: whatever is not known published is in exactly one of: the open map (the shim's), a switch under way, a frozen
//! set, `compare`, `resend`, `unreadable`. Only [`Volume::publish`] makes something leave that circle (L7).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use farside_ledger::{CutTime, EpochInfo, VolumeMeta};
use farside_region::{
    EpochId, Generation, Geometry, GranuleSet, LayerKey, LedgerPosition, RegionIndex, RegionRange, RegionSet, Seal, SealMode,
    Seq, Term, VolumeId, mutation,
};
use farside_wire::{Compared, Features, RequestId};

use super::api::{Action, Nanos, PartRead, Sample, SentPart, Start, VolumeSetup};
use super::status::{NotConverging, PointStatus, RefusedWhy};
use super::verify::{Verify, VerifyReport};

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) meta: VolumeMeta,
    /// Hot in the bits read at attach: what the position rule judges the first claim by.
    pub(super) inherited: RegionSet,
    pub(super) service: Service,
    pub(super) standing: Standing,
    pub(super) heat: Heat,
    pub(super) check: Check,
    pub(super) header: Header,
    /// The seal under the key that the receiver gave, on the newest connection.
    pub(super) offered: Option<Seal>,
    /// The term under which this attach sends; `None` until its first claim is accepted.
    pub(super) held: Option<Term>,
    pub(super) reclaim: Option<Reclaim>,
    /// The generation of the copy that was promoted in its place, as far as it was seen.
    pub(super) fenced_by: Option<Generation>,
    /// The newest point that there was when it was refused.
    pub(super) refused_at: Option<LedgerPosition>,
    /// A person takes the history back from that one.
    pub(super) outranks: Option<Generation>,
    /// What a person says of what was refused holds as long as the newest point is that one.
    pub(super) takes_back_at: Option<LedgerPosition>,
    /// The generation of the next claim, if it is another one; the volume's own as soon as that is accepted, and not before: what it has tells
    /// whether somebody was promoted in its place.
    pub(super) claims_as: Option<Generation>,
    /// The volume's generation is not kept on this host yet.
    generation_unsaved: bool,
    /// What the receiver said to its claim on this connection, which is made again.
    pub(super) claim_refused: Option<String>,
    /// Claims in turn with other instances since a layer of ours was published.
    pub(super) turns: u32,
    /// The claim of another instance that was counted last.
    pub(super) counted_turn: Option<Term>,
    /// The last sequence number given to a layer of `held`.
    pub(super) last_seq: Seq,
    /// The last one known published.
    pub(super) known_seq: Seq,
    /// The newest record known to have published a layer of this volume, or its claim.
    pub(super) published: Option<LedgerPosition>,
    /// The newest published layer is not part of a point.
    pub(super) point_due: bool,
    pub(super) compare: RegionSet,
    pub(super) resend: GranuleSet,
    pub(super) unreadable: Unreadable,
    /// Regions whose retry was taken out by a freeze that had all of them, until a layer that has all of them is published.
    retried: RegionSet,
    /// Frozen sets not yet published to their end.
    pub(super) frozen: BTreeMap<EpochId, Frozen>,
    /// Unpublished layers by sequence number.
    pub(super) layers: VecDeque<Layer>,
    pub(super) reading: Option<Reading>,
    /// Regions whose published content is all zeroes.
    pub(super) zero: RegionSet,
    /// What records above the durable header touched, by slot plus one; see [`Volume::is_uncovered`].
    pub(super) uncovered: BTreeMap<u64, RegionSet>,
    /// Cooling candidates that wait for the header.
    pub(super) cooling: Option<Cooling>,
    pub(super) sample: Sample,
    pub(super) newest_point: Option<PointStatus>,
    /// The T of the newest heartbeat sent.
    pub(super) quiet: Option<CutTime>,
    /// A cut was given up because of it, and no part of it was read since.
    pub(super) hangs: bool,
    pub(super) flush_failed: bool,
    pub(super) loss: Loss,
    /// The newest record of a loss of tracking for which every bit was set in this attach.
    pub(super) heeded: Option<farside_region::Slot>,
    pub(super) ever_published: bool,
    pub(super) pass: Option<PassStart>,
    pub(super) not_converging: Option<NotConverging>,
    pub(super) verify: Option<Verify>,
    /// Of the verify under way, or the newest one of this attach.
    pub(super) verify_report: Option<VerifyReport>,
    /// That was equal to all that was published, and when it was said on the connection that is up.
    pub(super) compared: Option<(Compared, Option<Nanos>)>,
}

/// What a person, or the configuration, wants of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Service {
    Running,
    Paused,
    /// Nobody reads it for us any more in this attach.
    Unread,
    Leaving,
}

/// Whether layers may be made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Good,
    /// Until every bit is set.
    TrackingLost,
    Refused(RefusedWhy),
}

/// Every bit is being set, and what is to follow (T3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heat(pub(super) Vec<HeatFor>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeatFor {
    Accept,
    TrackingLost,
    /// The ledger says in that slot that an attach before this one lost track.
    Recorded(farside_region::Slot),
    Resync,
}

/// Whether a loss of tracking in this attach is kept somewhere.
///
/// ```text
/// Kept ─► Unsaid ─► Said ─► OnRecord        any ──every bit is set──► Kept
///            ▲────────┴─────────┘ the connection, or the term, is gone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// At the host; or there is none.
    Kept,
    /// The receiver is to be asked.
    Unsaid,
    Said(RequestId),
    /// The receiver's ledger has it.
    OnRecord,
}

/// How far a volume came on the present connection.
///
/// ```text
/// Waiting ─► Looking ─┬─► Resuming ───────────────┬─► Confirming ─► Checked
///    ▲                └─► Listing ─► Claiming ────┘                    │
///    └─────────── disconnect; term over, data lost, accepted ──────────┘
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// For a connection, for a switch to end, for bits to be set, or until a time.
    Waiting { until: Nanos },
    /// The position rule's question is asked.
    Looking { id: RequestId, seen: Seen },
    /// The hot regions are asked for, since data was lost.
    Listing { looked: Looked },
    /// The claim is asked for.
    Claiming { id: RequestId },
    /// The layers' fates are asked for.
    Resuming { id: RequestId },
    /// The term must become durable in the header.
    Confirming,
    /// Layers may be sent.
    Checked,
}

/// What the pages of a ledger slice said so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) after: Option<farside_region::Slot>,
    /// A layer of another term than the confirmed one.
    pub(super) foreign: bool,
    pub(super) regions: RegionSet,
}

/// Up to where the claimant looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Looked(pub(super) Option<farside_region::Slot>);

/// Why a new claim is needed though one is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reclaim {
    /// The term is over.
    Term,
    /// Data of a layer was lost; whatever is hot is compared.
    Lost,
    /// A person accepted: the position rule is not asked.
    Accepted,
}

/// Records of which the regions are kept apart until the header covers them.
const UNCOVERED_MAX: usize = 64;

/// The durable header, as far as it is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) confirmed: Option<Term>,
    pub(super) position: Option<LedgerPosition>,
    /// What the newest write asked for.
    pub(super) asked: (Option<Term>, Option<LedgerPosition>),
    pub(super) asked_at: Nanos,
}

impl Header {
    pub(super) fn covers(&self, position: Option<LedgerPosition>) -> bool {
        slot_of(self.position) >= slot_of(position)
    }
}

/// A position's slot plus one; 0 for none, so that they compare.
pub(super) fn slot_of(position: Option<LedgerPosition>) -> u64 {
    position.map_or(0, |p| p.slot.0 + 1)
}

#[derive(Debug)]
pub(super) struct Cooling {
    pub(super) regions: RegionSet,
    pub(super) position: Option<LedgerPosition>,
}

#[derive(Debug, Default)]
pub(super) struct Unreadable {
    pub(super) granules: GranuleSet,
    pub(super) retry_at: Nanos,
    pub(super) backoff: Nanos,
}

impl Unreadable {
    /// † Those that wait for their turn keep it: else a host that goes on writing to a dead sector, whose every layer fails there
    /// anew, would put off for ever the retry of what can be read again.
    fn note(&mut self, granules: &GranuleSet, now: Nanos, retry: Nanos) {
        if self.granules.is_empty() || mutation::on("unreadable anew puts off every retry") {
            self.backoff = (self.backoff * 2).clamp(retry, retry * 64);
            self.retry_at = now + self.backoff;
        }
        self.granules.union_with(granules);
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PassStart {
    pub(super) at: Nanos,
    pub(super) bytes: u64,
    /// Of these, what was marked again before it was read, and not sent.
    pub(super) left_bytes: u64,
    pub(super) futile: u32,
}

/// What one epoch froze of this volume, until its last layer is published.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) set: Arc<GranuleSet>,
    pub(super) compare: Arc<RegionSet>,
    pub(super) info: EpochInfo,
    /// Where the next slice begins; `None` = every granule belongs to a layer.
    pub(super) next_slice: Option<RegionIndex>,
    /// Everything below is published.
    pub(super) released_below: RegionIndex,
    pub(super) since: Nanos,
    pub(super) total_bytes: u64,
    pub(super) done_bytes: u64,
    pub(super) sent_bytes: u64,
}

/// How far a layer came.
///
/// ```text
/// Reading ─► Read ─► Sent ─► Staged ─► (published: gone)
///    ▲        ▲        │       │
///    │        └─demote─┴───────┘        a new end message is due
///    └── reset: parts are read again (T1)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Some of it is still to be read; counts as Frozen.
    Reading,
    /// All read; kind and members are still to be said; counts as Frozen.
    Read,
    /// Said.
    Sent,
    /// Durable at the receiver.
    Staged,
}

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) key: LayerKey,
    pub(super) epoch: EpochId,
    pub(super) info: EpochInfo,
    pub(super) from: RegionIndex,
    /// Where it ends; `None` = not known before it is read.
    pub(super) until: Option<RegionIndex>,
    /// All below is read.
    pub(super) cursor: RegionIndex,
    pub(super) stage: Stage,
    pub(super) reads: Vec<Read>,
    /// So many of its parts are known to be at the receiver.
    pub(super) there: u32,
    pub(super) begun: Nanos,
    pub(super) volume_bytes: u64,
}

/// One stretch of regions that was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) from: RegionIndex,
    pub(super) sent: Option<SentPart>,
    pub(super) unreadable: RegionSet,
    pub(super) zero: RegionSet,
    /// Where granules were left out.
    pub(super) left: RegionSet,
}

/// The part being read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) key: LayerKey,
    pub(super) part: u32,
    pub(super) begun: Nanos,
    /// How long it was seen to wait for its disk so far, all together.
    pub(super) waited: Nanos,
    /// Up to when that is known.
    pub(super) seen_at: Nanos,
    /// Credit set aside for it.
    pub(super) reserved: u64,
    pub(super) state: ReadingState,
    /// Digest questions not answered yet.
    pub(super) asked: Vec<(RequestId, farside_region::GranuleRun)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadingState {
    Going,
    /// Told to end at the next region boundary.
    Finishing,
    /// Told to give up.
    Aborting,
}

impl Layer {
    pub(super) fn parts(&self) -> u32 {
        self.reads.iter().filter(|r| r.sent.is_some()).count() as u32
    }

    pub(super) fn bytes(&self) -> u64 {
        self.reads.iter().filter_map(|r| r.sent).map(|s| s.bytes).sum()
    }

    /// Where it ends, as far as known.
    pub(super) fn end(&self) -> RegionIndex {
        self.until.unwrap_or(self.cursor)
    }

    pub(super) fn is_frozen(&self) -> bool {
        matches!(self.stage, Stage::Reading | Stage::Read)
    }

    /// Forgets everything from part `keep` on; true when something has to be read again.
    pub(super) fn truncate(&mut self, keep: u32) -> bool {
        let mut parts = 0;
        let at = self.reads.iter().position(|read| {
            let gone = read.sent.is_some() && parts == keep;
            parts += u32::from(read.sent.is_some());
            gone
        });
        let Some(at) = at else { return false };
        self.cursor = self.reads[at].from;
        self.reads.truncate(at);
        true
    }

    /// So many of its parts are at the receiver. Gives how many bytes those have of which that is new; `None`: it is of none.
    pub(super) fn arrived(&mut self, parts: u32) -> Option<u64> {
        let parts = parts.min(self.parts());
        let before = std::mem::replace(&mut self.there, parts);
        let sent = self.reads.iter().filter_map(|read| read.sent);
        let new = sent.take(parts as usize).skip(before as usize);
        (parts > before).then(|| new.map(|part| part.bytes).sum())
    }

    /// Parts were sent of which it is not known whether they arrived.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.parts() > self.there
    }
}

impl Volume {
    /// Whether it never held a claim, as far as is known here.
    pub(super) fn is_new_here(&self) -> bool {
        self.held.or(self.header.confirmed).is_none()
    }

    /// The generation that a claim of this host brought, in memory.
    pub(super) fn adopt_generation(&mut self, generation: Generation) {
        self.meta.generation = generation;
        self.generation_unsaved = true;
    }

    /// † Not before the header has the term that the volume was claimed under with it: a host that died between the two would know of no
    /// promotion, find what its stand-in published under another term than its own, and be Forked. A term that outlives its generation tells it again.
    pub(super) fn save_generation(&mut self, has_term: bool, out: &mut Vec<Action>) {
        if has_term && std::mem::take(&mut self.generation_unsaved) {
            out.push(Action::AdoptMeta { meta: Box::new(self.meta.clone()) });
        }
    }

    /// Whether a claim above another promotion, or of what was accepted, was said, and its verdict is not here.
    pub(super) fn may_have_claimed(&self) -> bool {
        let is_by_word = self.reclaim == Some(Reclaim::Accepted);
        is_by_word && (self.claims_as.is_some() || matches!(self.check, Check::Claiming { .. }))
    }

    pub(super) fn new(setup: VolumeSetup) -> Self {
        let VolumeSetup { meta, confirmed, position, inherited, start, tracking_lost, paused } = setup;
        let compare = match start {
            Start::Clean => RegionSet::new(),
            Start::Unclean if mutation::on("an attach after a crash compares nothing") => RegionSet::new(),
            Start::Unclean => inherited.clone(),
        };
        Self {
            meta,
            inherited,
            service: if paused { Service::Paused } else { Service::Running },
            standing: if tracking_lost { Standing::TrackingLost } else { Standing::Good },
            heat: Heat::default(),
            check: Check::Waiting { until: 0 },
            header: Header { confirmed, position, asked: (confirmed, position), asked_at: 0 },
            offered: None,
            held: None,
            reclaim: None,
            fenced_by: None,
            refused_at: None,
            outranks: None,
            takes_back_at: None,
            claims_as: None,
            generation_unsaved: false,
            turns: 0,
            counted_turn: None,
            last_seq: Seq(0),
            known_seq: Seq(0),
            published: position,
            point_due: false,
            compare,
            resend: GranuleSet::new(),
            unreadable: Unreadable::default(),
            retried: RegionSet::new(),
            frozen: BTreeMap::new(),
            layers: VecDeque::new(),
            reading: None,
            zero: RegionSet::new(),
            uncovered: BTreeMap::new(),
            cooling: None,
            claim_refused: None,
            sample: Sample::default(),
            newest_point: None,
            quiet: None,
            hangs: false,
            flush_failed: false,
            loss: Loss::Kept,
            heeded: None,
            ever_published: false,
            pass: None,
            not_converging: None,
            verify: None,
            verify_report: None,
            compared: None,
        }
    }

    /// Whether its content is encrypted before it leaves the host.
    pub(super) fn is_sealed(&self) -> bool {
        self.meta.digest_key.seal().is_some()
    }

    /// What a receiver must understand that is to have it.
    pub(super) fn features(&self) -> Features {
        match self.meta.digest_key.seal().map(|seal| seal.mode) {
            None => Features::default(),
            Some(SealMode::EndToEnd) => Features::SEALED,
            Some(SealMode::AtRest) => Features::AT_REST,
        }
    }

    /// Kept in clear by a receiver that encrypts what begins now.
    pub(super) fn is_in_clear(&self) -> bool {
        self.offered.is_some() && !self.is_sealed() && self.held.is_some()
    }

    pub(super) fn id(&self) -> VolumeId {
        self.meta.id
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.meta.geometry
    }

    pub(super) fn is_checked(&self) -> bool {
        self.check == Check::Checked
    }

    /// A resume is going to say what became of each layer under the term that is held, from the lowest on.
    ///
    /// † Until then nothing that is said of one counts. One that lies below it may be published, too, and the word of that was lost with the
    /// connection before: let go after it, it would pass for the newer, and what it left zero for zero still (T8). The answer is made after
    /// whatever was said before it, so it tells all of that once more.
    pub(super) fn awaits_fates(&self) -> bool {
        let awaits = self.reclaim.is_none() && !matches!(self.check, Check::Confirming | Check::Checked);
        awaits && !mutation::on("T8 a layer is let go before those below it")
    }

    /// Sent and received like any other: no person, no refusal, no doubt holds it back.
    pub(super) fn is_active(&self) -> bool {
        self.service == Service::Running && self.standing == Standing::Good
    }

    /// It is active, and not one that the receiver does not take: nobody waits for that one.
    pub(super) fn takes_part(&self) -> bool {
        self.is_active() && (self.claim_refused.is_none() || self.held.is_some())
    }

    /// Something is frozen: a switch would make a second one.
    pub(super) fn has_frozen(&self) -> bool {
        self.layers.iter().any(Layer::is_frozen) || self.frozen.values().any(|f| f.next_slice.is_some())
    }

    /// May take part in a switch.
    pub(super) fn fits(&self, unpublished_layers_max: usize) -> bool {
        self.is_active()
            && self.is_checked()
            && self.reclaim.is_none()
            && self.heat.0.is_empty()
            && !self.has_frozen()
            && (self.layers.len() < unpublished_layers_max || mutation::on("L8 epochs pile up"))
    }

    pub(super) fn layer_mut(&mut self, key: &LayerKey) -> Option<&mut Layer> {
        self.layers.iter_mut().find(|l| l.key == *key)
    }

    pub(super) fn compare_bytes(&self) -> u64 {
        region_bytes(&self.geometry(), &self.compare)
    }

    pub(super) fn granule_bytes(&self, set: &GranuleSet) -> u64 {
        set.granule_count(&self.geometry()) * self.geometry().granule_bytes()
    }

    pub(super) fn mentions(&self, region: RegionIndex) -> bool {
        self.compare.contains(region)
            || self.resend.touches(region)
            || self.unreadable.granules.touches(region)
            || self.frozen.values().any(|f| region >= f.released_below && (f.set.touches(region) || f.compare.contains(region)))
    }

    /// Everything but the open map (T2).
    pub(super) fn owed(&self) -> GranuleSet {
        let mut owed = self.unpublished();
        owed.union_with(&self.unreadable.granules);
        owed
    }

    /// What is to be compared, sent again, or frozen and not known published.
    pub(super) fn unpublished(&self) -> GranuleSet {
        let mut owed = self.resend.clone();
        self.compare.ranges().for_each(|r| owed.insert_whole(r));
        for frozen in self.frozen.values().filter(|_| !mutation::on("T2 masks without unpublished layers")) {
            owed.union_with(&above(&frozen.set, frozen.released_below));
        }
        owed
    }

    /// Nothing is to be sent. Unreadable granules are none of that: they make no epoch by themselves, the newest point says that
    /// it is degraded, and their regions stay hot.
    pub(super) fn owes_nothing(&self) -> bool {
        self.compare.is_empty() && self.resend.is_empty() && self.frozen.is_empty()
    }

    /// What is frozen in full is read again: there is nothing to be retried about it beside that. † A region of which only a part is frozen keeps
    /// its retry, also where that part is all that could not be read: the ledger calls a region readable again only when it is rewritten in full.
    pub(super) fn freeze_unreadable(&mut self, frozen: &GranuleSet) {
        let mut again = frozen.parts().0.clone();
        if mutation::on("a region that is read again in part is not retried") {
            again.union_with(&frozen.regions());
        }
        let mut left = GranuleSet::new();
        let (whole, parts) = self.unreadable.granules.parts();
        parts.filter(|(region, _)| !again.contains(*region)).for_each(|(region, mask)| left.insert_mask(region, mask));
        let mut whole = whole.clone();
        whole.subtract(&again);
        whole.ranges().for_each(|r| left.insert_whole(r));
        self.retried.union_with(&self.unreadable.granules.regions());
        self.retried.subtract(&left.regions());
        self.unreadable.granules = left;
    }

    /// The layer is named by an accepted record: what it covered need not be kept any more.
    pub(super) fn publish(&mut self, key: &LayerKey) -> Option<Layer> {
        let at = self.layers.iter().position(|l| l.key == *key)?;
        let layer = self.layers.remove(at)?;
        self.ever_published = true;
        self.known_seq = self.known_seq.max(key.seq);
        let covered = self.covered(&layer);
        self.zero.subtract(&covered);
        // The header that candidates wait for does not cover this record.
        if let Some(cooling) = &mut self.cooling {
            cooling.regions.subtract(&covered);
        }
        layer.reads.iter().for_each(|r| self.zero.union_with(&r.zero));
        if !self.retried.is_empty() {
            self.retried.subtract(&self.covered_whole(&layer));
        }
        self.release(layer.epoch);
        Some(layer)
    }

    /// A record in this position touches the regions.
    pub(super) fn recorded(&mut self, position: LedgerPosition, regions: &RegionSet) {
        self.uncovered.entry(slot_of(Some(position))).or_default().union_with(regions);
        // A header that cannot be written must not make it grow: what is above a later slot is above an earlier one.
        if self.uncovered.len() > UNCOVERED_MAX
            && let Some((_, oldest)) = self.uncovered.pop_first()
            && let Some(mut next) = self.uncovered.first_entry()
        {
            next.get_mut().union_with(&oldest);
        }
    }

    /// Whether a record above the durable header touched the region. Its bit must stay until the header covers that: the next
    /// attach reads every record above its header, and takes what they touch beside hot regions for another's (L2, L6).
    pub(super) fn is_uncovered(&self, region: RegionIndex) -> bool {
        !mutation::on("clear before the header") && self.uncovered.values().any(|regions| regions.contains(region))
    }

    /// What a layer touches.
    pub(super) fn covered(&self, layer: &Layer) -> RegionSet {
        self.frozen.get(&layer.epoch).map_or_else(RegionSet::new, |f| between(&f.set.regions(), layer.from, layer.end()))
    }

    /// What a layer rewrites in full.
    pub(super) fn covered_whole(&self, layer: &Layer) -> RegionSet {
        let Some(frozen) = self.frozen.get(&layer.epoch) else { return RegionSet::new() };
        let mut whole = between(frozen.set.parts().0, layer.from, layer.end());
        // † What was left out is still there from before: it may be unreadable, and would be called readable.
        if !mutation::on("a region is called whole of which granules were left out") {
            layer.reads.iter().for_each(|read| whole.subtract(&read.left));
        }
        whole
    }

    /// Moves the mark below which all of an epoch is published; forgets the epoch when that is everything.
    fn release(&mut self, epoch: EpochId) {
        let lowest = self.layers.iter().filter(|l| l.epoch == epoch).map(|l| l.from).min();
        let Some(frozen) = self.frozen.get_mut(&epoch) else { return };
        match lowest.into_iter().chain(frozen.next_slice).min() {
            Some(lowest) => frozen.released_below = lowest,
            None => {
                self.frozen.remove(&epoch);
            }
        }
    }

    /// How its maps and its reader are now. A part may take hours on a slow line, behind other volumes' parts: only what it
    /// waits for its disk makes its reader hang. That one read comes back at times changes nothing: a dying disk that answers
    /// every half minute would hold the others' points up for days.
    pub(super) fn sampled(&mut self, now: Nanos, sample: Sample) {
        let waits = |sample: &Sample| sample.waits_for_disk || mutation::on("a slow line is a hung disk");
        let waited = waits(&self.sample) && waits(&sample);
        if let Some(reading) = &mut self.reading {
            let since = now.saturating_sub(std::mem::replace(&mut reading.seen_at, now));
            reading.waited = reading.waited.saturating_add(if waited { since } else { 0 });
        }
        self.sample = sample;
    }

    /// Takes a part's result in; the layer's stage is the caller's.
    pub(super) fn part_read(&mut self, part: &PartRead, now: Nanos, retry: Nanos) {
        let granule_bytes = self.geometry().granule_bytes();
        let left_granules = part.left.granule_count(&self.geometry());
        // A part of which everything was left out asked nothing of the disk.
        self.hangs &= part.granules == 0;
        if !part.unreadable.is_empty() {
            self.unreadable.note(&part.unreadable, now, retry);
        }
        self.retry_what_was_left(part, now, retry);
        let Some(layer) = self.layers.iter_mut().find(|l| l.key == part.key) else { return };
        let from = layer.cursor;
        layer.cursor = layer.cursor.max(part.next);
        layer.reads.push(Read {
            from,
            sent: part.sent,
            unreadable: part.unreadable.regions(),
            zero: part.zero_regions.clone(),
            left: part.left.regions(),
        });
        let left_bytes = left_granules * granule_bytes;
        if let Some(frozen) = self.frozen.get_mut(&layer.epoch) {
            frozen.done_bytes += part.granules * granule_bytes + left_bytes;
            frozen.sent_bytes += part.sent.map_or(0, |s| s.bytes);
        }
        if let Some(pass) = &mut self.pass {
            pass.left_bytes += left_bytes;
        }
    }

    /// † Of a region that was to be read again in full, and of which a pass left out what the host has written since, the ledger goes on to say that it
    /// cannot be read: nothing that follows rewrites all of it.
    fn retry_what_was_left(&mut self, part: &PartRead, now: Nanos, retry: Nanos) {
        if self.retried.is_empty() || part.left.is_empty() || mutation::on("what a pass left out of a retry is not retried") {
            return;
        }
        let mut again = GranuleSet::new();
        let left = part.left.regions();
        let frozen = self.layers.iter().find(|layer| layer.key == part.key).and_then(|layer| self.frozen.get(&layer.epoch));
        let is_whole = |region| frozen.is_some_and(|frozen| frozen.set.parts().0.contains(region));
        let regions = left.iter().filter(|region| self.retried.contains(*region) && is_whole(*region));
        regions.for_each(|start| again.insert_whole(RegionRange { start, count: 1 }));
        if !again.is_empty() {
            self.retried.subtract(&again.regions());
            self.unreadable.note(&again, now, retry);
        }
    }

    /// Of the regions that a layer rewrites in full, those of which its end says so, in at most so many ranges: what was unreadable before the others.
    /// † Where the end says too little, the ledger goes on to call readable regions unreadable: they are retried.
    pub(super) fn say_whole(&mut self, whole: &RegionSet, share: usize, now: Nanos, retry: Nanos) -> RegionSet {
        let mut due = self.retried.intersection(whole);
        let said = if whole.range_count() <= share {
            whole.clone()
        } else {
            let mut said = first_ranges(&due, share);
            said.union_with(&first_ranges(whole, share - said.range_count()));
            said
        };
        due.subtract(&said);
        if !due.is_empty() && !mutation::on("what an end has no room for is not retried") {
            let mut again = GranuleSet::new();
            due.ranges().for_each(|r| again.insert_whole(r));
            self.retried.subtract(&due);
            self.unreadable.note(&again, now, retry);
        }
        said
    }

    /// All layers are given up: what they covered is to be compared or sent again. Returns the epochs that named them.
    pub(super) fn orphan(&mut self) -> Vec<EpochId> {
        let epochs: Vec<_> = self.frozen.keys().copied().collect();
        for frozen in std::mem::take(&mut self.frozen).into_values() {
            let mut set = above(&frozen.set, frozen.released_below);
            let compare = between(&frozen.compare, frozen.released_below, RegionIndex(u64::MAX));
            compare.iter().for_each(|r| set.remove_region(r));
            self.compare.union_with(&compare);
            self.resend.union_with(&set);
        }
        self.layers.clear();
        epochs
    }

    /// Unreadable regions whose time has come, taken out to be frozen whole.
    pub(super) fn take_retries(&mut self, now: Nanos) -> RegionSet {
        if self.unreadable.granules.is_empty() || now < self.unreadable.retry_at {
            return RegionSet::new();
        }
        let taken = std::mem::take(&mut self.unreadable.granules).regions();
        self.retried.union_with(&taken);
        taken
    }
}

pub(super) fn region_bytes(geometry: &Geometry, set: &RegionSet) -> u64 {
    (set.len() * geometry.region_bytes()).min(geometry.volume_bytes())
}

fn first_ranges(set: &RegionSet, count: usize) -> RegionSet {
    let mut first = RegionSet::new();
    set.ranges().take(count).for_each(|range| first.insert_range(range));
    first
}

/// The regions of a set in `from..until`.
pub(super) fn between(set: &RegionSet, from: RegionIndex, until: RegionIndex) -> RegionSet {
    let mut cut = RegionSet::new();
    for r in set.ranges() {
        let start = r.start.max(from);
        let end = (r.start.0 + r.count).min(until.0);
        if start.0 < end {
            cut.insert_range(RegionRange { start, count: end - start.0 });
        }
    }
    cut
}

/// What of a set lies at or above a region.
pub(super) fn above(set: &GranuleSet, from: RegionIndex) -> GranuleSet {
    if from.0 == 0 {
        return set.clone();
    }
    let (whole, masks) = set.parts();
    let mut cut = GranuleSet::new();
    between(whole, from, RegionIndex(u64::MAX)).ranges().for_each(|r| cut.insert_whole(r));
    masks.filter(|(r, _)| *r >= from).for_each(|(r, m)| cut.insert_mask(r, m));
    cut
}
