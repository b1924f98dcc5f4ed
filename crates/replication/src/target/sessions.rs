//! Connections of a group: greeting, credit, and answers about the ledger.
//!
//! Different runs of a source (one that died half-open, a clone) may stand side by side; their terms tell them apart (T7), and
//! one of which another has claimed everything has no credit. A newer connection of the *same* run ends the older one before
//! anything else is done.

use std::collections::BTreeMap;

use farside_ledger::{Forgotten, Policy, State, VolumeMeta};
use farside_region::{GranuleIndex, LayerKey, LedgerPosition, PackedRegions, SealMode, Slot, Term, VolumeId, mutation};
use farside_wire::{
    ClaimRequest, Credit, CurrentVolume, DigestAnswer, DigestQuery, DigestRun, Features, InstanceId, LedgerLayer, LedgerSlice,
    NewestPoint, Notice, ReadLedger, ReceiverHello, ReceiverMessage, Refusal, RefusalCode, RequestId, SourceHello,
    TEXT_BYTES_MAX, VersionRange,
};

use super::Target;
use super::api::{Action, Limits, Report, SessionId};
use super::compose::QueuedClaim;
use crate::source::{FULL_BELOW, Nanos};

/// Claims that one session may have open, and digest questions beside the one of a verify.
const QUESTIONS_MAX: usize = 64;
/// So far above what a ledger knows a generation may be: of a store that was put back to an earlier moment.
const GENERATIONS_AHEAD_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Session {
    /// What the source can do.
    features: Features,
    pub(super) instance: InstanceId,
    connection: u64,
    granted: u64,
    landed: u64,
    landed_at: Nanos,
    /// What may be outstanding: begins small, and grows as it is used.
    window: u64,
    notice: Notice,
    digests: usize,
    /// What it wants to be kept, until it may say so.
    /// And whether somebody said it.
    policy: Option<(Policy, bool)>,
    /// The claims that it is known to hold, current or not.
    held: BTreeMap<VolumeId, Term>,
    /// Another run of the source has claimed all that it held.
    overtaken: bool,
}

impl Session {
    /// Under which term it holds a volume, current or not.
    pub(super) fn holds(&self, volume: VolumeId) -> Option<Term> {
        self.held.get(&volume).copied()
    }

    pub(super) fn outstanding(&self) -> u64 {
        self.granted.saturating_sub(self.landed)
    }

    /// What of its grants the disk must have room for. One that sends nothing holds little: its landing is checked against
    /// the disk anyway, and what it does not use must not keep others waiting.
    pub(super) fn held_back(&self, now: Nanos, limits: &Limits) -> u64 {
        let idle = now >= self.landed_at.saturating_add(limits.credit_idle);
        if self.overtaken {
            return 0;
        }
        if idle { self.outstanding().min(limits.credit_step) } else { self.outstanding() }
    }

    /// Bytes that arrived, kept or not: parts of a term that is over are read to their end and count too, so that a source
    /// never runs out of credit by them.
    fn has_landed(&mut self, now: Nanos, bytes: u64, limits: &Limits) {
        self.landed = self.landed.saturating_add(bytes);
        self.granted = self.granted.max(self.landed);
        self.landed_at = now;
        // Whoever uses its window gets a larger one.
        self.window = self.window.saturating_add(bytes).min(limits.credit_window);
    }
}

/// What the receiver's disk has left: see [`Event::Grantable`](super::Event::Grantable).
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) free_bytes: u64,
    pub(super) disk_bytes: u64,
    pub(super) spare_bytes: u64,
    pub(super) reserve_bytes: u64,
}

impl Disk {
    /// Until the disk is looked at again.
    pub(super) fn take(&mut self, bytes: u64) {
        self.free_bytes = self.free_bytes.saturating_sub(bytes);
        self.disk_bytes = self.disk_bytes.saturating_sub(bytes);
        self.spare_bytes = self.spare_bytes.saturating_sub(bytes);
    }
}

impl Target {
    pub(super) fn hello(&mut self, from: SessionId, hello: SourceHello, out: &mut Vec<Action>) {
        if self.sessions.contains_key(&from) {
            return self.close(from, "a second greeting", out);
        }
        let SourceHello { versions, features, instance, connection, source, group } = hello;
        let version = match VersionRange::OURS.negotiate(versions) {
            Ok(version) => version,
            Err(error) => return self.turn_away(from, RefusalCode::Version, &error.to_string(), out),
        };
        if (&source, &group) != (&self.config.source, &self.config.group_name) {
            let text = format!("this connection is for group {} of {}", self.config.group_name, self.config.source);
            return self.turn_away(from, RefusalCode::Unknown, &text, out);
        }
        let same: Vec<_> =
            self.sessions.iter().filter(|(_, s)| s.instance == instance).map(|(id, s)| (*id, s.connection)).collect();
        if same.iter().any(|(_, known)| *known >= connection) {
            return self.turn_away(from, RefusalCode::Session, "a newer connection of this source stands", out);
        }
        // Another run of the source: its claims end the terms of what is staged. What is complete is published before that.
        self.hurried |= same.is_empty();
        same.iter().for_each(|(old, _)| self.close(*old, "a newer connection of the same source", out));
        while self.sessions.len() >= self.config.limits.sessions_max
            && let Some(&oldest) = self.sessions.keys().next()
        {
            self.close(oldest, "too many connections of one group", out);
        }
        let session = Session {
            features,
            instance,
            connection,
            granted: 0,
            landed: 0,
            landed_at: self.now,
            window: self.config.limits.credit_step.clamp(1, self.config.limits.credit_window.max(1)),
            notice: Notice::Ready,
            digests: 0,
            policy: None,
            held: BTreeMap::new(),
            overtaken: false,
        };
        self.sessions.insert(from, session);
        // Where nothing waits nobody need say that he does.
        let ours = if self.config.limits.publish_every == 0 { Features::OURS.without(Features::PUBLISH) } else { Features::OURS };
        let hello = ReceiverHello { version, features: ours.common(features), store: self.config.store };
        self.send(from, ReceiverMessage::Hello(hello), out);
        if let Some(failed) = self.store_failed() {
            self.send(from, ReceiverMessage::Notice(failed), out);
        }
    }

    pub(super) fn instance_of(&self, session: SessionId) -> Option<InstanceId> {
        self.sessions.get(&session).map(|s| s.instance)
    }

    fn turn_away(&mut self, from: SessionId, code: RefusalCode, text: &str, out: &mut Vec<Action>) {
        self.refuse(from, code, None, text, out);
        self.close(from, "refused at the greeting", out);
    }

    pub(super) fn refuse(&self, to: SessionId, code: RefusalCode, volume: Option<VolumeId>, text: &str, out: &mut Vec<Action>) {
        let refusal = Refusal { code, volume, text: bounded(text) };
        self.send(to, ReceiverMessage::Refusal(refusal), out);
    }

    pub(super) fn close(&mut self, session: SessionId, why: &'static str, out: &mut Vec<Action>) {
        self.closed(session);
        out.push(Action::Report { volume: None, what: Report::SessionRefused { why } });
        out.push(Action::CloseSession { session, why });
    }

    pub(super) fn closed(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.claims.retain(|c| c.session != session);
    }

    /// Grants what the disk has room for, up to a window per session.
    pub(super) fn grant(&mut self, out: &mut Vec<Action>) {
        let limits = self.config.limits;
        let Some(disk) = self.disk else { return };
        let mut room = disk.free_bytes.saturating_sub(self.granted_bytes());
        let now = self.now;
        let failed = self.store_failed();
        let mut messages = Vec::new();
        for (&id, session) in self.sessions.iter_mut().filter(|(_, session)| !session.overtaken) {
            if now >= session.landed_at.saturating_add(limits.credit_idle) {
                session.window = limits.credit_step.clamp(1, limits.credit_window.max(1));
            }
            let wanted = session.window.saturating_sub(session.outstanding());
            let more = wanted.min(room);
            // A source does not send dribbles, so what it has left may be of no use to it: the remainder goes with it.
            let dry = session.outstanding() < limits.credit_step.max(1);
            if more >= limits.credit_step.max(1) || (dry && more > 0) {
                room -= more;
                session.granted += more;
                messages.push((id, ReceiverMessage::Credit(Credit { granted_bytes: session.granted })));
            }
            let notice = if session.outstanding() < limits.credit_step.min(limits.credit_window).max(1) {
                // Whether it is full, or others have what there is, the source tells by what all have.
                Notice::GatewayFull { free_bytes: disk.disk_bytes, reserve_bytes: disk.reserve_bytes }
            } else {
                Notice::Ready
            };
            if full_kind(&notice) != full_kind(&session.notice) {
                session.notice = notice.clone();
                // † Of a source's two troubles the newest notice holds: that there is room does not say that the store is well.
                let is_room = notice == Notice::Ready;
                let said = failed.clone().filter(|_| is_room).unwrap_or(notice);
                messages.push((id, ReceiverMessage::Notice(said)));
            }
        }
        messages.into_iter().for_each(|(id, message)| self.send(id, message, out));
    }

    /// What a source is told while nothing can be appended.
    fn store_failed(&self) -> Option<Notice> {
        self.trouble.as_ref().map(|trouble| Notice::StoreFailed { text: bounded(&trouble.text) })
    }

    /// The store is well again, which does not say that there is room.
    pub(super) fn store_is_well(&self, out: &mut Vec<Action>) {
        self.sessions.iter().for_each(|(&id, session)| self.send(id, ReceiverMessage::Notice(session.notice.clone()), out));
    }

    pub(super) fn landed_bytes(&mut self, session: SessionId, bytes: u64) {
        if let Some(disk) = &mut self.disk {
            disk.take(bytes.max(self.config.limits.file_bytes));
        }
        let (now, limits) = (self.now, self.config.limits);
        if let Some(session) = self.sessions.get_mut(&session) {
            session.has_landed(now, bytes, &limits);
        }
    }

    pub(super) fn read_ledger(&mut self, state: &State, to: SessionId, question: &ReadLedger, out: &mut Vec<Action>) {
        let known = state.volume(question.volume).map(|volume| volume.meta());
        let features = self.sessions.get(&to).map_or(Features::default(), |session| session.features);
        let lacks = |volume: &VolumeMeta| match volume.digest_key.seal().map(|seal| seal.mode) {
            None => false,
            Some(SealMode::EndToEnd) => !features.has(Features::SEALED),
            Some(SealMode::AtRest) => !features.has(Features::AT_REST),
        };
        if let Some(volume) = known.filter(|volume| lacks(volume)) {
            let text = format!("volume {} is encrypted: update farsided on the host", volume.name);
            return self.turn_away(to, RefusalCode::Version, &text, out);
        }
        // Of a position that replay has forgotten its record tells.
        let unsure = question.position.filter(|position| state.held(position).is_none());
        let ancestor = unsure.is_some() || question.position.is_none_or(|position| state.holds(&position));
        let from = question.after.max(question.position.map(|p| p.slot));
        let (layers, more) = if ancestor { self.page(state, question.volume, from) } else { (Vec::new(), false) };
        let slice = LedgerSlice {
            id: question.id,
            volume: question.volume,
            ancestor,
            layers,
            more,
            head: state.position(),
            current: self.current(state, question.volume),
        };
        let is_coarse = slice.layers.iter().any(|layer| !state.is_exact(layer.slot));
        let is_looked_up = is_coarse && !mutation::on("L6 all between an old layer's regions is touched");
        if is_looked_up || unsure.is_some() && !mutation::on("L6 a position that is forgotten is believed") {
            return out.push(Action::AnswerLedger { session: to, slice: Box::new(slice), position: unsure });
        }
        self.send(to, ReceiverMessage::LedgerSlice(slice), out);
    }

    /// Layers of a volume above a slot, as many as fit a message, at least one; and whether there are more. One that must be
    /// looked up comes alone: nobody knows yet how long it is.
    fn page(&self, state: &State, volume: VolumeId, from: Option<Slot>) -> (Vec<LedgerLayer>, bool) {
        let mut page = Vec::new();
        let mut ranges = 0;
        // † As if all that was forgotten had come in with its newest: whatever lies among it is above that position, too.
        let forgotten = state.volume(volume).and_then(|volume| volume.forgotten_above(from)).copied();
        let mut forgotten = forgotten.filter(|_| !mutation::on("L6 what was forgotten touched nothing")).into_iter().peekable();
        let mut known = state.layers_above(volume, from).peekable();
        loop {
            let is_next = |at: &Forgotten| known.peek().is_none_or(|layer| at.slot < layer.slot);
            let (slot, term, touched) = match forgotten.next_if(is_next) {
                Some(at) => (at.slot, at.term, PackedRegions::from(&at.regions())),
                None => match known.next() {
                    Some(layer) => (layer.slot, layer.key.term, layer.touched().clone()),
                    None => break,
                },
            };
            ranges += touched.range_count() + 4;
            let alone = |slot: Slot| !state.is_exact(slot);
            let ends = ranges > self.config.limits.slice_ranges_max
                || alone(slot)
                || page.last().is_some_and(|last: &LedgerLayer| alone(last.slot));
            if ends && !page.is_empty() {
                return (page, true);
            }
            page.push(LedgerLayer { slot, term, regions: touched.regions() });
        }
        (page, false)
    }

    fn current(&self, state: &State, id: VolumeId) -> Option<CurrentVolume> {
        let volume = state.volume(id)?;
        let newest = state.points().values().rev().find(|p| p.members.iter().any(|m| m.key.volume == id));
        let newest_point = newest.and_then(|point| {
            let digest = state.digest_at(point.slot)?;
            Some(NewestPoint { position: LedgerPosition { slot: point.slot, digest }, epoch: point.epoch })
        });
        let claimant = self.claimants.get(&id).filter(|(term, _)| *term == volume.term()).map(|(_, who)| *who);
        Some(CurrentVolume {
            meta: volume.meta().clone(),
            term: volume.term(),
            last_seq: volume.last_seq(),
            has_layers: volume.last_layer().is_some(),
            point_due: volume.ends_fuzzy(),
            claimant,
            newest_point,
            tracking_lost: volume.tracking_lost(),
        })
    }

    pub(super) fn claim(&mut self, state: &State, from: SessionId, request: ClaimRequest, out: &mut Vec<Action>) {
        if self.claims.len() >= QUESTIONS_MAX {
            return self.close(from, "too many claims at once", out);
        }
        let volume = &request.claim.volume;
        // † Nobody could ever be promoted above the last number there is: such a host could not be fenced.
        let highest = state.highest_generation();
        if volume.generation.0 > highest.0.saturating_add(GENERATIONS_AHEAD_MAX) {
            let (name, claimed) = (&volume.name, volume.generation);
            let text = format!(
                "volume {name} is claimed under generation {claimed}, and this history is at {highest}: so far ahead no promotion was given out. The \
                 host's note of it is damaged (meta.json of the volume, in its state directory): put it back"
            );
            // It is one volume's note: the session goes on.
            self.refuse(from, RefusalCode::Protocol, Some(volume.id), &text, out);
            return self.send(from, ReceiverMessage::ClaimVerdict(request.not_taken()), out);
        }
        if let Some(seal) = volume.digest_key.seal()
            && !self.keys.contains(&seal.key)
            && !mutation::on("a claim before its wrapped key")
        {
            let text =
                format!("volume {} is claimed with the key {}, of which the store holds no wrapping", volume.name, seal.key);
            self.refuse(from, RefusalCode::Protocol, None, &text, out);
            return self.close(from, "a claim before its wrapped key", out);
        }
        // Also of the same run: what is complete under the old term is published before that ends.
        self.hurried |= self.config.limits.publish_every > 0;
        let Some(instance) = self.sessions.get(&from).map(|session| session.instance) else { return };
        self.claims.push_back(QueuedClaim { session: from, instance, id: request.id, claim: request.claim });
    }

    /// What to keep is for the one whose view of the ledger holds to say (T7): somebody who met a gateway with an older, a
    /// newer or another ledger, or a clone, must not have points pruned. Until then it is remembered, and goes with the
    /// connection.
    pub(super) fn retention(&mut self, state: &State, from: SessionId, policy: (Policy, bool), out: &mut Vec<Action>) {
        self.sessions.get_mut(&from).expect("the caller found it").policy = Some(policy);
        self.say_policy(state, from, out);
    }

    /// This session has shown that it holds the current claim of a volume.
    pub(super) fn holds(&mut self, state: &State, from: SessionId, volume: VolumeId, term: Term, out: &mut Vec<Action>) {
        if let Some(session) = self.sessions.get_mut(&from) {
            session.held.insert(volume, term);
            session.overtaken = false;
            self.say_policy(state, from, out);
        }
    }

    /// Takes back what was granted to connections of which every claim is over, now that this one has made its own: a run of the
    /// source that died without a word, as a rule. Nothing that it sends can be published (T4), and nobody may have to wait
    /// until it is found out that it is dead. One that lives claims anew, and is granted again.
    pub(super) fn overtake(&mut self, state: &State, by: SessionId) {
        let is_over = |(id, term): (&VolumeId, &Term)| state.volume(*id).is_none_or(|volume| volume.term() != *term);
        for (_, session) in self.sessions.iter_mut().filter(|(id, _)| **id != by) {
            let over = !session.held.is_empty() && session.held.iter().all(is_over);
            session.overtaken |= over && !mutation::on("L8 what a dead run was granted is kept");
        }
    }

    fn say_policy(&mut self, state: &State, from: SessionId, out: &mut Vec<Action>) {
        let Some(session) = self.sessions.get_mut(&from) else { return };
        let current = session.held.iter().any(|(id, term)| state.volume(*id).is_some_and(|v| v.term() == *term));
        if current && let Some((policy, is_said)) = session.policy.take() {
            out.push(Action::Policy { policy, is_said });
        }
    }

    pub(super) fn digest_query(&mut self, state: &State, from: SessionId, query: &DigestQuery, out: &mut Vec<Action>) {
        let DigestQuery { id, volume, term, run } = *query;
        if state.volume(volume).is_none_or(|v| v.term() != term) {
            return self.refuse(from, RefusalCode::Term, Some(volume), "another claim of the volume is current", out);
        }
        let session = self.sessions.get_mut(&from).expect("the caller found it");
        if session.digests > QUESTIONS_MAX {
            return self.close(from, "too many digest questions at once", out);
        }
        session.digests += 1;
        out.push(Action::ReadDigests { session: from, id, volume, run });
    }

    pub(super) fn digests(
        &mut self,
        to: SessionId,
        id: RequestId,
        volume: VolumeId,
        start: GranuleIndex,
        runs: Result<Vec<DigestRun>, String>,
        out: &mut Vec<Action>,
    ) {
        let Some(session) = self.sessions.get_mut(&to) else { return };
        session.digests = session.digests.saturating_sub(1);
        match runs {
            Ok(runs) => self.send(to, ReceiverMessage::DigestAnswer(DigestAnswer { id, volume, start, runs }), out),
            Err(text) => self.refuse(to, RefusalCode::Store, Some(volume), &text, out),
        }
    }

    /// Whether a part's stream may be landed: ask when its header arrived, before a byte is written.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn accepts_part(&self, state: &State, session: SessionId, key: LayerKey, part: u32) -> Result<(), RefusalCode> {
        if !self.sessions.contains_key(&session) {
            return Err(RefusalCode::Session);
        }
        let volume = state.volume(key.volume).ok_or(RefusalCode::Unknown)?;
        if volume.term() != key.term || key.seq <= volume.last_seq() {
            return Err(RefusalCode::Term);
        }
        let full = !self.layers.contains_key(&key) && self.layers_of(key.volume).count() >= self.config.limits.layers_max;
        let taken = self.layers.get(&key).is_some_and(|l| l.is_staged() || l.parts.contains_key(&part));
        if full || taken || part >= self.config.limits.parts_max {
            return Err(RefusalCode::Protocol);
        }
        Ok(())
    }
}

/// Whether a session has room, and if not, whether anybody has: what is worth another notice.
fn full_kind(notice: &Notice) -> (bool, bool) {
    match notice {
        Notice::GatewayFull { free_bytes, .. } => (true, *free_bytes < FULL_BELOW),
        _ => (false, false),
    }
}

/// Cut to what a message may hold.
pub(super) fn bounded(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
