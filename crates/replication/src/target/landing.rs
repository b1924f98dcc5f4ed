//! Layers that are not published: which parts are durable, what the end message said, and when they are staged (T1, T4, T5,
//! T7, T10).
//!
//! Where staged layers wait to be published, what was said of them is *kept* beside their parts ([`Action::KeepEnd`]), so that a process
//! that comes after this one publishes them without their source. Why that never makes a point that is none:
//! - Kept is the end of a layer that is *staged*: whole, its content bound by the digest in the end message, and everything below it in
//!   its term staged or published. The message came after the last read of every member (T10), so at that moment all of them were the
//!   cut. What is not staged keeps nothing: what a reset reads again is exactly that (T1).
//! - It is taken up only for the same content: all parts are there and have the digest, and the layer below, as it is in the ledger or
//!   was taken up before it, has the digest that was kept with it (`under`). If a part is lost, or was sent again with other content after
//!   a reset, this layer and all above it wait for their source (T1), however old the file is that says otherwise.
//! - A claim ends the term, in the ledger, and nothing of an older term stands there (`standing`, T4, T5). Members of a point that lost one to a
//!   new claim keep a list of members of which one can never be staged again: they are no point until the source says what they are (T11).
//! - A source may call a staged point fuzzy later, because it could not know that it had arrived whole. That is kept as well, but
//!   nothing depends on it: a point of which all members were staged as they were said is a true one.
//! - When each was staged is kept with it, so a record is dated by that and not by the restart: retention by time keeps as many points of an
//!   outage as without it.
//! - A point needs all of its members staged under the same list, kept or said: one whose file is missing, torn or of another version holds the
//!   others up until its source has said it again, as after a restart without any of this.

use std::collections::BTreeMap;
use std::sync::Arc;

use farside_ledger::{EpochInfo, KeptEnd, Label, LayerKind, PartEntry, State, VolumeState};
use farside_region::{LayerKey, LedgerPosition, PackedRegions, RegionSet, Seq, Term, VolumeId, mutation};
use farside_wire::{
    EndMember, EpochEnd, HeldLayer, InstanceId, LayerFate, Lost, Published, ReceiverMessage, RefusalCode, ResumeAnswer,
    ResumeQuery, ResumedLayer, SaidEnd, Staged, Void,
};

use super::Target;
use super::api::{Action, DropWhy, LandedLayer, Report, SessionId};
use crate::source::Nanos;

/// One unpublished layer.
#[derive(Debug)]
pub(super) struct Landing {
    pub(super) parts: BTreeMap<u32, PartEntry>,
    pub(super) end: Option<End>,
    pub(super) stage: Stage,
}

/// ```text
/// Landing ─► Staged ─► (published, or dropped: gone)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Landing,
    Staged {
        /// When that was.
        since: Nanos,
    },
}

/// What the newest end message said of it.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) kind: LayerKind,
    pub(super) epoch: EpochInfo,
    pub(super) label: Option<Box<Label>>,
    /// Ascending; one list for all of them.
    pub(super) members: Arc<[LayerKey]>,
    pub(super) this: Said,
}

/// What an end message said of one layer. There may be many of these, and each is asked once.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) key: LayerKey,
    pub(super) parts: u32,
    pub(super) digest: [u8; 32],
    pub(super) volume_bytes: u64,
    pub(super) regions: PackedRegions,
    pub(super) whole_regions: PackedRegions,
    pub(super) unreadable_regions: PackedRegions,
}

impl From<&EndMember> for Said {
    fn from(member: &EndMember) -> Self {
        Self {
            key: member.key,
            parts: member.parts,
            digest: member.digest,
            volume_bytes: member.volume_bytes,
            regions: (&member.regions).into(),
            whole_regions: (&member.whole_regions).into(),
            unreadable_regions: (&member.unreadable_regions).into(),
        }
    }
}

impl From<KeptEnd> for End {
    fn from(kept: KeptEnd) -> Self {
        let this = Said {
            key: kept.key,
            parts: kept.parts,
            digest: kept.digest,
            volume_bytes: kept.volume_bytes,
            regions: (&kept.regions).into(),
            whole_regions: (&kept.whole_regions).into(),
            unreadable_regions: (&kept.unreadable_regions).into(),
        };
        Self { kind: kept.kind, epoch: kept.epoch, label: kept.label, members: kept.members.into(), this }
    }
}

impl End {
    fn to_kept(&self, under: [u8; 32]) -> KeptEnd {
        KeptEnd {
            key: self.this.key,
            kind: self.kind,
            epoch: self.epoch,
            label: self.label.clone(),
            members: self.members.to_vec(),
            parts: self.this.parts,
            digest: self.this.digest,
            volume_bytes: self.this.volume_bytes,
            regions: self.this.regions.regions(),
            whole_regions: self.this.whole_regions.regions(),
            unreadable_regions: self.this.unreadable_regions.regions(),
            under,
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        let Said { regions, whole_regions, unreadable_regions, .. } = &self.this;
        regions.held_bytes() + whole_regions.held_bytes() + unreadable_regions.held_bytes()
    }
}

impl Landing {
    fn new() -> Self {
        Self { parts: BTreeMap::new(), end: None, stage: Stage::Landing }
    }

    pub(super) fn is_staged(&self) -> bool {
        self.staged_since().is_some()
    }

    pub(super) fn staged_since(&self) -> Option<Nanos> {
        match self.stage {
            Stage::Staged { since } => Some(since),
            Stage::Landing => None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.parts.values().map(|p| p.bytes).sum()
    }

    /// Parts from 0 on without a gap.
    fn in_order(&self) -> u32 {
        self.parts.keys().zip(0..).take_while(|(part, n)| *part == n).count() as u32
    }

    /// As many as the end message counts.
    fn has_all_parts(&self) -> bool {
        self.end.as_ref().is_some_and(|end| self.in_order() == end.this.parts)
    }

    fn truncate(&mut self, parts: u32) {
        self.parts.split_off(&parts);
    }
}

/// Whether a member is of the size that its own claim gave, and touches nothing else. What was said under another claim is
/// judged elsewhere.
fn fits_claim(state: &State, member: &EndMember) -> bool {
    let claimed = state.volume(member.key.volume).filter(|v| v.term() == member.key.term);
    let sets = [&member.regions, &member.whole_regions, &member.unreadable_regions];
    claimed.is_none_or(|volume| fits_volume(volume, member.volume_bytes, sets))
}

/// The same, of a layer of the volume's term.
fn fits_volume(volume: &VolumeState, volume_bytes: u64, sets: [&RegionSet; 3]) -> bool {
    let geometry = volume.meta().geometry;
    let inside = |set: &RegionSet| set.last().is_none_or(|region| region.0 < geometry.region_count());
    volume_bytes == geometry.volume_bytes() && sets.into_iter().all(inside)
}

/// What can be said about a layer's completeness.
enum Completeness {
    Missing,
    Complete,
    Mismatch,
}

impl Target {
    pub(super) fn layers_of(&self, volume: VolumeId) -> impl Iterator<Item = (&LayerKey, &Landing)> {
        let low = LayerKey { volume, term: Term(0), seq: Seq(0) };
        let high = LayerKey { volume, term: Term(u64::MAX), seq: Seq(u64::MAX) };
        self.layers.range(low..=high)
    }

    /// What landing held when the group was opened; what cannot be published any more is swept.
    pub(super) fn take_up(&mut self, state: &State, landed: Vec<LandedLayer>, out: &mut Vec<Action>) {
        for LandedLayer { key, parts, end, staged_ago } in landed {
            match self.standing(state, &key) {
                _ if state.layer(&key).is_some() => {}
                Err(why) => self.drop_layer(key, why, out),
                Ok(()) => {
                    if !parts.is_empty() {
                        let mut landing = Landing::new();
                        landing.parts.extend(parts);
                        self.layers.insert(key, landing);
                    }
                    self.kept.extend(end.filter(|end| end.key == key).map(|end| (key, (end, staged_ago))));
                }
            }
        }
    }

    /// Makes staged again what an earlier process had staged, as far as it is the same content on top of the same content.
    pub(super) fn take_up_ends(&mut self, state: &State) {
        let mut kept = std::mem::take(&mut self.kept);
        if kept.is_empty() {
            return;
        }
        self.ends_changed = true;
        let mut held_bytes = 0;
        for (_, volume) in state.volumes() {
            let (mut key, mut under) = (volume.next_key(), self.under(state, &volume.next_key()));
            let mut chain = Vec::new();
            while let Some((end, ago)) = kept.remove(&key) {
                let landing = self.layers.get(&key);
                let footers: Vec<[u8; 32]> =
                    landing.map(|landing| landing.parts.values().map(|part| part.footer_digest).collect()).unwrap_or_default();
                let whole = landing.map_or(0, Landing::in_order) == end.parts && footers.len() == end.parts as usize;
                let is_it = whole && end.under == under && (self.config.layer_digest)(&key, &footers) == end.digest;
                let sets = [&end.regions, &end.whole_regions, &end.unreadable_regions];
                let known = end.members.contains(&key) && fits_volume(volume, end.volume_bytes, sets);
                let end = End::from(end);
                held_bytes += end.held_bytes();
                let believed = mutation::on("what was kept of a layer is believed whatever lies below it") && whole;
                if !known || !(is_it || believed) || held_bytes > self.config.limits.ends_bytes_max {
                    break;
                }
                under = end.this.digest;
                let landing = self.layers.entry(key).or_insert_with(Landing::new);
                landing.end = Some(end);
                chain.push((key, self.now.saturating_sub(ago)));
                key.seq = key.seq.next();
            }
            // One that a clock dated later than what came after it was staged no later than that.
            let mut after = Nanos::MAX;
            for (key, since) in chain.into_iter().rev() {
                after = after.min(since);
                self.layers.get_mut(&key).expect("it was just taken up").stage = Stage::Staged { since: after };
            }
        }
    }

    /// The digest of the layer before this one in its term, as far as it is known; zeroes if this is the first.
    fn under(&self, state: &State, key: &LayerKey) -> [u8; 32] {
        let before = key.seq.0.checked_sub(1).map(|seq| LayerKey { seq: Seq(seq), ..*key });
        let Some(before) = before.filter(|before| before.seq != Seq(0)) else { return [0; 32] };
        let staged = || Some(self.layers.get(&before)?.end.as_ref()?.this.digest);
        state.layer(&before).map(|fact| fact.digest).or_else(staged).unwrap_or([0; 32])
    }

    /// Has what is known of a staged layer kept, where it waits to be published.
    fn keep_end(&self, state: &State, key: &LayerKey, out: &mut Vec<Action>) {
        if let Some((end, ago)) = self.end_to_keep(state, key) {
            out.push(Action::KeepEnd { end: Box::new(end), ago });
        }
    }

    /// What is to be kept of a layer as it is now, and how long ago it was staged; `None`: nothing, or no more. For whoever could not carry
    /// out an [`Action::KeepEnd`], and tries again.
    pub fn end_to_keep(&self, state: &State, key: &LayerKey) -> Option<(KeptEnd, Nanos)> {
        let landing = self.layers.get(key).filter(|_| self.config.limits.publish_every > 0)?;
        let ago = self.now.saturating_sub(landing.staged_since()?);
        Some((landing.end.as_ref()?.to_kept(self.under(state, key)), ago))
    }

    /// Whether a layer may still be published.
    fn standing(&self, state: &State, key: &LayerKey) -> Result<(), DropWhy> {
        if carries_terms() {
            return Ok(());
        }
        match state.volume(key.volume) {
            Some(volume) if volume.term() == key.term => {
                if key.seq > volume.last_seq() {
                    Ok(())
                } else {
                    Err(DropWhy::Behind)
                }
            }
            // A slot beyond the head cannot be a term; nothing of it can ever be accepted.
            _ => Err(DropWhy::Term),
        }
    }

    fn drop_layer(&mut self, key: LayerKey, why: DropWhy, out: &mut Vec<Action>) {
        self.layers.remove(&key);
        out.push(Action::DropLayer { key });
        out.push(Action::Report { volume: Some(key.volume), what: Report::Dropped { key, why } });
    }

    /// Gives up layers of points that are none any more, and that nobody named since: their volume was removed, or moved to another group. No record
    /// could name them, and as long as they wait, whatever is staged is overdue, and nothing counts as published up to now.
    ///
    /// † Only while no record is on its way and none is in doubt: it may name them.
    pub(super) fn give_up_left_behind(&mut self, state: &State, out: &mut Vec<Action>) {
        if !self.ends_changed || self.appending.is_some() || self.trouble.is_some() {
            return;
        }
        self.ends_changed = false;
        let is_fuzzy = |key: &LayerKey| match state.layer(key) {
            Some(fact) => fact.kind == LayerKind::Fuzzy,
            None => self.layers.get(key).and_then(|landing| landing.end.as_ref()).is_some_and(|end| end.kind == LayerKind::Fuzzy),
        };
        let is_left = |landing: &Landing| {
            let end = landing.end.as_ref().filter(|end| landing.is_staged() && end.kind == LayerKind::Point);
            end.is_some_and(|end| end.members.iter().any(is_fuzzy))
        };
        let left: Vec<LayerKey> = self.layers.iter().filter(|(_, landing)| is_left(landing)).map(|(key, _)| *key).collect();
        // A source that has such a layer all the same sends it again.
        left.into_iter().for_each(|key| self.lose(key, DropWhy::LeftBehind, out));
    }

    pub(super) fn layer_begin(&mut self, state: &State, from: SessionId, key: LayerKey, out: &mut Vec<Action>) {
        match self.standing(state, &key) {
            Err(DropWhy::Term) => self.send(from, ReceiverMessage::Void(Void { layers: vec![key] }), out),
            _ => {
                let _ = self.entry(from, key, out);
            }
        }
    }

    /// The layer's entry, made if there is room.
    fn entry(&mut self, from: SessionId, key: LayerKey, out: &mut Vec<Action>) -> Option<&mut Landing> {
        let room = self.layers.contains_key(&key) || self.layers_of(key.volume).count() < self.config.limits.layers_max;
        if !room {
            self.close(from, "too many unpublished layers", out);
            return None;
        }
        Some(self.layers.entry(key).or_insert_with(Landing::new))
    }

    pub(super) fn part_landed(
        &mut self,
        state: &State,
        session: SessionId,
        key: LayerKey,
        part: u32,
        entry: PartEntry,
        out: &mut Vec<Action>,
    ) {
        if !self.sessions.contains_key(&session) {
            return;
        }
        self.landed_bytes(session, entry.bytes);
        if let Err(why) = self.standing(state, &key) {
            // Published meanwhile: its parts stay. Of another term: nobody will ever name them.
            if state.layer(&key).is_none() {
                self.drop_layer(key, why, out);
                // † The layer may have begun on a connection before this one, and nothing of it was here when the term ended:
                // whoever is granted nothing any more would wait for ever.
                if why == DropWhy::Term {
                    self.send(session, ReceiverMessage::Void(Void { layers: vec![key] }), out);
                }
            }
            return;
        }
        let Some(landing) = self.entry(session, key, out) else { return };
        match landing.parts.get(&part) {
            // Two contents under one name: nobody knows which of them is on disk now.
            Some(known) if *known != entry => self.lose(key, DropWhy::Mismatch, out),
            None if landing.stage == Stage::Landing => {
                landing.parts.insert(part, entry);
                self.stage(state, key.volume, out);
            }
            _ => {}
        }
    }

    /// The source cannot be asked for one part: a reset makes it read again what is missing.
    pub(super) fn part_failed(&mut self, session: SessionId, key: LayerKey, part: u32, why: String, out: &mut Vec<Action>) {
        out.push(Action::Report { volume: Some(key.volume), what: Report::PartFailed { key, part, why } });
        if self.sessions.contains_key(&session) {
            self.close(session, "a part did not land", out);
        }
    }

    /// `label`: of the point that it is the end of.
    pub(super) fn epoch_end(
        &mut self,
        state: &State,
        from: SessionId,
        end: EpochEnd,
        label: Option<Box<Label>>,
        out: &mut Vec<Action>,
    ) {
        let believed = mutation::on("L9 an end message is believed");
        if let Some(stray) = end.members.iter().find(|m| !believed && !fits_claim(state, m)) {
            let (volume, text) = (stray.key.volume, format!("layer {} is not of the volume that was claimed", stray.key));
            self.refuse(from, RefusalCode::Protocol, Some(volume), &text, out);
            return self.close(from, "an end message that does not fit the claim", out);
        }
        let (kind, epoch) = (end.kind, end.epoch);
        let mut members: Vec<LayerKey> = end.members.iter().map(|m| m.key).collect();
        members.sort_unstable();
        let members: Arc<[LayerKey]> = members.into();
        let mut void = Vec::new();
        let mut held_bytes: usize = self.layers.values().filter_map(|l| l.end.as_ref()).map(End::held_bytes).sum();
        for member in end.members {
            if state.layer(&member.key).is_some() {
                self.already_published(state, from, &member, out);
            } else if self.standing(state, &member.key).is_err() {
                void.push(member.key);
            } else {
                let end = End { kind, epoch, label: label.clone(), members: Arc::clone(&members), this: Said::from(&member) };
                held_bytes += end.held_bytes();
                if held_bytes > self.config.limits.ends_bytes_max && !self.is_next(state, &member.key) {
                    return self.close(from, "too many regions in unpublished layers", out);
                }
                self.end_said(state, from, end, out);
            }
        }
        self.ends_changed |= kind == LayerKind::Fuzzy;
        if !void.is_empty() {
            self.send(from, ReceiverMessage::Void(Void { layers: void }), out);
        }
        members.iter().for_each(|key| self.stage(state, key.volume, out));
    }

    /// Whether a layer's publication waits for no other of its volume.
    fn is_next(&self, state: &State, key: &LayerKey) -> bool {
        state.volume(key.volume).is_some_and(|volume| volume.next_key() == *key)
    }

    /// The answer was lost: success if it is the same layer, refused by name if not (T11).
    fn already_published(&self, state: &State, from: SessionId, member: &EndMember, out: &mut Vec<Action>) {
        let fact = state.layer(&member.key).expect("the caller found it");
        if fact.digest != member.digest {
            let text = format!("layer {} was published with other content", member.key);
            return self.refuse(from, RefusalCode::DuplicateDiffers, Some(member.key.volume), &text, out);
        }
        let digest = state.digest_at(fact.slot).expect("an accepted layer's slot is below the head");
        let position = LedgerPosition { slot: fact.slot, digest };
        let published = Published { position, kind: fact.kind, layers: vec![member.key] };
        self.send(from, ReceiverMessage::Published(published), out);
    }

    /// A new end replaces the one before; of a staged layer it may only turn point into fuzzy, and only if it means the same
    /// content.
    fn end_said(&mut self, state: &State, from: SessionId, end: End, out: &mut Vec<Action>) {
        let key = end.this.key;
        let parts_max = self.config.limits.parts_max;
        let Some(landing) = self.entry(from, key, out) else { return };
        if end.this.parts > parts_max {
            return self.close(from, "a layer of too many parts", out);
        }
        match (&landing.end, landing.stage) {
            (Some(old), Stage::Staged { .. }) if (old.this.digest, old.this.parts) != (end.this.digest, end.this.parts) => {
                self.lose(key, DropWhy::Mismatch, out);
            }
            (Some(old), Stage::Staged { .. }) if old.kind == LayerKind::Fuzzy => {}
            (Some(old), Stage::Staged { .. }) if end.kind == LayerKind::Point && old.members != end.members => {
                self.close(from, "a point with other members than it had", out);
            }
            _ => {
                landing.end = Some(end);
                self.keep_end(state, &key, out);
            }
        }
    }

    pub(super) fn lose(&mut self, key: LayerKey, why: DropWhy, out: &mut Vec<Action>) {
        self.drop_layer(key, why, out);
        self.broadcast(&ReceiverMessage::Lost(Lost { layers: vec![key] }), out);
    }

    /// Layers become staged in the order of their numbers (T1).
    pub(super) fn stage(&mut self, state: &State, volume: VolumeId, out: &mut Vec<Action>) {
        let Some(known) = state.volume(volume) else { return };
        let mut key = known.next_key();
        let mut staged = Vec::new();
        let keys: Vec<LayerKey> = self.layers_of(volume).map(|(k, _)| *k).filter(|k| *k >= key).collect();
        for at in keys {
            if at != key && !mutation::on("T1 staged out of order") {
                break;
            }
            key = LayerKey { seq: key.seq.next(), ..key };
            if self.layers[&at].is_staged() {
                continue;
            }
            match self.completeness(&at) {
                Completeness::Complete => {
                    self.layers.get_mut(&at).expect("just seen").stage = Stage::Staged { since: self.now };
                    staged.push(at);
                }
                Completeness::Missing if mutation::on("T1 staged out of order") => {}
                Completeness::Missing => break,
                Completeness::Mismatch => {
                    self.lose(at, DropWhy::Mismatch, out);
                    break;
                }
            }
        }
        if !staged.is_empty() {
            staged.iter().for_each(|key| self.keep_end(state, key, out));
            self.broadcast(&ReceiverMessage::Staged(Staged { layers: staged }), out);
        }
    }

    /// Whether all parts that the end message counts are here and are those that it means.
    fn completeness(&self, key: &LayerKey) -> Completeness {
        let landing = &self.layers[key];
        let Some(end) = &landing.end else { return Completeness::Missing };
        if landing.in_order() < end.this.parts {
            return Completeness::Missing;
        }
        let footers: Vec<[u8; 32]> = landing.parts.values().map(|p| p.footer_digest).collect();
        let same = landing.parts.len() == end.this.parts as usize && (self.config.layer_digest)(key, &footers) == end.this.digest;
        if same || mutation::on("END without digest") { Completeness::Complete } else { Completeness::Mismatch }
    }

    /// Answers which parts are durable; drops, of the layers named in this connection's question only, what is beyond.
    pub(super) fn resume(&mut self, state: &State, from: SessionId, query: &ResumeQuery, out: &mut Vec<Action>) {
        if query.layers.len() > self.config.limits.layers_max {
            return self.close(from, "a question about more layers than there may be", out);
        }
        let known = state.volume(query.volume);
        let mut layers = Vec::new();
        let current = known.is_some_and(|v| v.term() == query.term);
        let key = |held: &HeldLayer| LayerKey { volume: query.volume, term: query.term, seq: held.seq };
        for held in query.layers.iter().filter(|_| current) {
            if state.layer(&key(held)).is_none() {
                self.cut_back(key(held), held.parts, out);
            }
        }
        if current && mutation::on("T7 a resume truncates what it does not name") {
            let named = |key: &LayerKey| query.layers.iter().any(|held| held.seq == key.seq);
            let others: Vec<LayerKey> = self.layers_of(query.volume).map(|(k, _)| *k).filter(|k| !named(k)).collect();
            others.into_iter().for_each(|key| self.cut_back(key, 0, out));
        }
        if let Some(known) = known.filter(|_| current) {
            self.forget_ends(known.next_key());
        }
        for held in query.layers.iter().filter(|_| current) {
            let key = key(held);
            let fate = match state.layer(&key) {
                Some(fact) => LayerFate::Published {
                    position: LedgerPosition {
                        slot: fact.slot,
                        digest: state.digest_at(fact.slot).expect("an accepted layer's slot is below the head"),
                    },
                    kind: fact.kind,
                },
                None => self.landed_so_far(&key),
            };
            layers.push(ResumedLayer { seq: held.seq, fate });
        }
        let answer = ResumeAnswer {
            id: query.id,
            volume: query.volume,
            term: known.map(|v| v.term()),
            last_seq: known.map_or(Seq(0), |v| v.last_seq()),
            layers,
        };
        self.send(from, ReceiverMessage::ResumeAnswer(answer), out);
        let other = |(term, who): &(Term, InstanceId)| *term == query.term && Some(*who) != self.instance_of(from);
        if current && !self.claimants.get(&query.volume).is_some_and(other) {
            self.holds(state, from, query.volume, query.term, out);
        }
    }

    /// Keeps of an unstaged layer what landed in order and its sender remembers.
    fn cut_back(&mut self, key: LayerKey, known_parts: u32, out: &mut Vec<Action>) {
        match self.layers.get_mut(&key) {
            None => out.push(Action::DropLayer { key }),
            Some(landing) if landing.is_staged() => {}
            Some(landing) => {
                let parts = landing.in_order().min(known_parts);
                landing.truncate(parts);
                out.push(Action::DropParts { key, from: parts });
            }
        }
    }

    /// An end that came before its parts stands only if nothing of the layer was lost, nor of an earlier one: what is read
    /// again of that is newer than this (T1).
    fn forget_ends(&mut self, next: LayerKey) {
        if mutation::on("END kept across a reset") {
            return;
        }
        let (mut next, last) = (next, LayerKey { seq: Seq(u64::MAX), ..next });
        let mut whole = true;
        for (key, landing) in self.layers.range_mut(next..=last) {
            whole &= *key == next && landing.has_all_parts();
            next.seq = next.seq.next();
            if !whole && landing.stage == Stage::Landing {
                landing.end = None;
            }
        }
    }

    fn landed_so_far(&self, key: &LayerKey) -> LayerFate {
        let said = |end: &End| SaidEnd { kind: end.kind, members: end.members.to_vec() };
        match self.layers.get(key) {
            None => LayerFate::Landing { parts: 0, end: None, staged: false },
            Some(landing) => LayerFate::Landing {
                parts: landing.parts.len() as u32,
                end: landing.end.as_ref().map(said),
                staged: landing.is_staged(),
            },
        }
    }

    /// A new claim is in: whatever was sent under an older one is void.
    pub(super) fn drop_old_terms(&mut self, volume: VolumeId, term: Term, out: &mut Vec<Action>) {
        if carries_terms() {
            return;
        }
        let old: Vec<LayerKey> = self.layers_of(volume).map(|(k, _)| *k).filter(|k| k.term != term).collect();
        if old.is_empty() {
            return;
        }
        old.iter().for_each(|key| self.drop_layer(*key, DropWhy::Term, out));
        self.broadcast(&ReceiverMessage::Void(Void { layers: old }), out);
    }
}

/// Two mistakes begin with keeping what an old term left.
pub(super) fn carries_terms() -> bool {
    mutation::on("staged data carried across a term") || mutation::on("accept a void record")
}
