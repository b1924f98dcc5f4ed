//! What sources say and send: looked at before the group's [`Target`](farside_replication::target::Target) hears of it.
//!
//! Invariant: nothing of a session that was closed is heard any more.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use farside_ledger::{CohortCut, Consistency, Label, PartEntry, volume_id};
use farside_replication::target::{Event, SessionId};
use farside_store::{Remedy, StoreError, Torn};
use farside_transport::CloseCode;
use farside_wire::{
    ClaimRequest, END_MEMBERS_MAX, PartHeader, ReceiverMessage, Refusal, RefusalCode, SourceMessage, decode_payload,
};

use super::{BeginPart, Group, Here, Listening, PartOutcome, Place};
use crate::door::{Session, refusal};
use crate::failover::left_behind;
use crate::status::way_out;

/// The only shape of volumes over the wire.
const GRANULE_BYTES: u64 = 4 << 10;
const REGION_GRANULES: u64 = 1 << 10;
/// Layers whose beginning is remembered, for the lag.
const BEGINNINGS_MAX: usize = 1024;
/// So many parts in a row may fail on the disk before the group takes no more for a while.
const PARTS_FAILED_MAX: u32 = 8;
/// Claims that a group may make in a minute, for each of its volumes: every one takes a slot of the ledger for ever. What is
/// void costs a source its claim, so this bounds void records, too.
const CLAIMS_PER_VOLUME: usize = 8;

impl Group {
    pub(super) fn frame(&mut self, session: SessionId, frame: &Bytes, arrived: Instant) {
        // What a session that was closed still says is not even looked at.
        let Some(link) = self.sessions.get(&session).cloned() else { return };
        match decode_payload::<SourceMessage>(frame) {
            Ok(message) => self.message(session, Box::new(message), arrived),
            Err(error) => {
                tracing::warn!(group = %self.names, %error, "a source sent what is not a message");
                self.end_session(&link, RefusalCode::Protocol, CloseCode::Protocol, &error.to_string());
            }
        }
    }

    /// What is said of a ledger that cannot be read to its end.
    pub(super) fn is_torn(&self, torn: &Torn) -> String {
        let way_out = way_out(torn, self.receiver.vault.path());
        format!(
            "the ledger of {} is torn in slot {} ({}: {}); on the gateway: {way_out}",
            self.names, torn.slot, torn.file, torn.why
        )
    }

    /// What a source says of its points decides what is kept of them: it may not draw cohorts as it likes.
    fn check_label(&self, label: &mut Label) {
        let Some(cut) = label.consistency.cohort_cut() else { return };
        let config = self.receiver.config();
        let is_known =
            config.cohort_of(&self.names).is_some_and(|cohort| CohortCut::cohort_id(cohort.name.as_str()) == cut.cohort);
        if !is_known {
            tracing::warn!(group = %self.names, "a point says that it is of a cohort which this gateway does not have");
            *label = Label::new(Consistency::Crash, &label.title, "");
        }
    }

    pub(super) fn message(&mut self, session: SessionId, mut message: Box<SourceMessage>, arrived: Instant) {
        if let SourceMessage::LabelledEnd(labelled) = &mut *message {
            self.check_label(&mut labelled.label);
        }
        // A session that was closed stays closed.
        let Some(link) = self.sessions.get(&session).cloned() else { return };
        let here = match &self.place {
            Place::Here(here) => here,
            Place::Away { words, .. } => {
                let words = words.clone();
                return self.turn_away(&link, RefusalCode::Store, &words);
            }
        };
        if let Some(torn) = here.store.torn() {
            let text = self.is_torn(torn);
            return self.turn_away(&link, RefusalCode::LedgerTorn, &text);
        }
        match &*message {
            SourceMessage::Claim(request) => {
                // These take no slot, and come again in a while.
                if let Err(text) = self.check_claim(here, &request.claim) {
                    return refuse_claim(&link, request, &text);
                }
                let volumes = here.store.state().volumes().count();
                if !self.claims.admit(Instant::now(), CLAIMS_PER_VOLUME * volumes.max(8)) {
                    let text = format!("{} claims its volumes again and again: something is wrong on its host", self.names);
                    return self.turn_away(&link, RefusalCode::Store, &text);
                }
                // Whoever comes again asks for the key again, which he does once in a connection.
                if let Err(text) = self.check_sealing(here, &request.claim) {
                    return self.turn_away(&link, RefusalCode::Protocol, &text);
                }
                // † In the note alone it could not be told from a fence that was not noted, and nothing would end that failover.
                if let Some(first) = self.receiver.failovers.nobody_from(&self.names)
                    && request.claim.volume.generation >= first
                    && !self.receiver.failovers.is_left_behind(&self.names, here.store.state())
                {
                    let text = format!(
                        "{0} is being failed over once more, and nobody is fenced yet: its history can be taken back when that is given up (on the gateway: farside \
                         failover {0} --abort), or through",
                        self.names
                    );
                    return self.turn_away(&link, RefusalCode::Store, &text);
                }
                if link.peer() == self.names.source
                    && let (state, of) = (here.store.state(), &self.receiver)
                    && let Some(text) = of.failovers.why_nothing_is_taken_back(&of.state_dir, &self.names, state, &request.claim)
                {
                    return self.turn_away(&link, RefusalCode::Store, &text);
                }
                if self.is_above_what_it_stands_in_for(here, &request.claim, &link.peer()) {
                    let peer = link.peer();
                    let text = format!(
                        "{peer} stands in for {}, and claims a volume above its failover: only the source itself takes a history back; update farsided on {peer}",
                        self.names
                    );
                    return self.turn_away(&link, RefusalCode::Unknown, &text);
                }
                if self.is_new_beside_a_failover(here, &request.claim, &link.peer()) {
                    // Its session goes on: the others may be taken back over it.
                    return link.send(&ReceiverMessage::ClaimVerdict(request.not_taken()));
                }
            }
            SourceMessage::LayerBegin(begin) => {
                if self.beginnings.len() >= BEGINNINGS_MAX {
                    self.beginnings.pop_first();
                }
                self.beginnings.entry(begin.key).or_insert(arrived);
            }
            _ => {}
        }
        self.events.push_back((Event::Message { session, message }, Some(arrived)));
    }

    /// A claim is for a volume of this group, whose files get its name, and there is room for it. † What is wrong with one volume is no reason to hear
    /// nothing of the others.
    fn check_claim(&self, here: &Here, claim: &farside_ledger::Claim) -> Result<(), String> {
        let (volume, state) = (&claim.volume, here.store.state());
        if claim.source != self.names.source || volume.id != volume_id(&self.names.source, &self.names.group, &volume.name) {
            return Err(format!("the claim of volume `{}` does not carry the id of that name", volume.name));
        }
        // The digests' and the indexes' sizes follow from the shape.
        if (volume.geometry.granule_bytes(), volume.geometry.region_granules()) != (GRANULE_BYTES, REGION_GRANULES) {
            return Err(format!("volume `{}` does not have granules of 4 KiB in regions of 4 MiB", volume.name));
        }
        let limit = self.receiver.config().limits.volumes_per_group;
        let waiting = here.target.new_volumes(state);
        let is_new = state.volume(volume.id).is_none() && !waiting.contains(&volume.id);
        if is_new && state.volumes().count() + waiting.len() >= limit {
            return Err(format!(
                "volume `{}` is not taken: {} has had {limit} volumes here, those that were removed included, which is this receiver's limit \
                 (`limits.volumes_per_group`, {END_MEMBERS_MAX} at most)",
                volume.name, self.names
            ));
        }
        Ok(())
    }

    /// A new volume is encrypted as this gateway keeps new ones.
    fn check_sealing(&self, here: &Here, claim: &farside_ledger::Claim) -> Result<(), String> {
        let volume = &claim.volume;
        // † In clear for ever: who was asked for the key, or knows nothing of that, comes again.
        let is_known = here.store.state().volume(volume.id).is_some();
        if !is_known && volume.digest_key.seal().is_none() && !self.receiver.config().at_rest_of(&self.names).is_empty() {
            return Err(format!(
                "volume `{}` is to be kept without encryption, and this gateway keeps new ones encrypted at rest ([[at_rest]] in receiver.toml): it is tried \
                 again by itself; if that does not help, update farsided on the host",
                volume.name
            ));
        }
        if !is_known && volume.digest_key.seal().is_some_and(|seal| !self.may_begin_with(seal)) {
            return Err(format!(
                "volume `{}` is claimed as encrypted at rest, with a key that this gateway did not give",
                volume.name
            ));
        }
        Ok(())
    }

    /// Whether a source that was failed over, or may have been, claims a volume that it did not have then. † Nothing of the ledger would fence it, and a point of it would be
    /// the newest of the group.
    fn is_new_beside_a_failover(&self, here: &Here, claim: &farside_ledger::Claim, peer: &farside_region::Name) -> bool {
        let is_new = here.store.state().volume(claim.volume.id).is_none();
        let (failovers, state_dir) = (&self.receiver.failovers, &self.receiver.state_dir);
        let stands = || failovers.stands(&self.names) || failovers.may_stand_unread(state_dir, &self.names, here.store.state());
        let is_it = is_new && *peer == self.names.source && stands();
        if is_it {
            let volume = &claim.volume.name;
            tracing::warn!(group = %self.names, %volume, "a new volume of a source that was failed over, or may have been, waits until its history is taken back, or the failover's note can be read");
        }
        is_it
    }

    /// Whether a host that stands in claims a volume above its failover. † That would count as its source's, which takes its history back: the failover would
    /// be over, and whoever claimed shut out with it.
    fn is_above_what_it_stands_in_for(&self, here: &Here, claim: &farside_ledger::Claim, peer: &farside_region::Name) -> bool {
        let promotion = self.receiver.failovers.promotion(&self.names, here.store.state().highest_generation());
        *peer != self.names.source && promotion.is_some_and(|(promotion, _)| claim.volume.generation > promotion)
    }

    /// Ends the session of whoever is neither the source nor stands in for it, and that of the source where it was failed over for good.
    pub(super) fn refuse_stranger(&mut self, session: &Arc<Session>) {
        let peer = session.peer();
        if peer == self.names.source
            && let Some(winner) = self.receiver.failovers.committed(&self.names)
        {
            let text = gone_for_good(&self.names, &winner);
            return self.turn_away(session, RefusalCode::Unknown, &text);
        }
        let highest = match &self.place {
            Place::Here(here) => Some(here.store.state().highest_generation()),
            Place::Away { .. } => None,
        };
        let stands_in = self.receiver.failovers.stands_in(&self.names, &peer, highest);
        if peer != self.names.source && (!stands_in || self.is_taken_back()) {
            let failovers = &self.receiver.failovers;
            let (lost, behind) = if let Place::Here(here) = &self.place {
                let state = here.store.state();
                let behind = failovers
                    .is_left_behind(&self.names, state)
                    .then(|| left_behind(&self.names, state.highest_generation()).message);
                (failovers.lost(&self.names, state), behind)
            } else {
                (None, None)
            };
            let over = || {
                format!(
                    "its source has its history back, or another host stands in (on the gateway: farside failover --list); on {peer}: `farside volume remove` of \
                     what it has in group {}, then leave `stand_in_for` out of its [[group]]",
                    self.names.group
                )
            };
            let why = behind.or_else(|| lost?.lets_stand_in(&self.names, &peer)).unwrap_or_else(over);
            let text = format!("{peer} does not stand in for {} any more: {why}", self.names);
            self.turn_away(session, RefusalCode::Unknown, &text);
        }
    }

    /// The same of all.
    pub(super) fn refuse_strangers(&mut self) {
        let all: Vec<_> = self.sessions.values().cloned().collect();
        all.iter().for_each(|session| self.refuse_stranger(session));
    }

    /// Whether a volume was claimed above the failover that stands. † Whoever stood in publishes nothing of the others from then on: what their
    /// source has by then would not be the newest of all any more.
    fn is_taken_back(&self) -> bool {
        let Place::Here(here) = &self.place else { return false };
        let highest = here.store.state().highest_generation();
        self.receiver.failovers.promotion(&self.names, highest).is_some_and(|(promotion, _)| highest > promotion)
    }

    pub(super) fn turn_away(&mut self, session: &Arc<Session>, code: RefusalCode, text: &str) {
        self.end_session(session, code, CloseCode::Refused, text);
    }

    fn end_session(&mut self, session: &Arc<Session>, code: RefusalCode, end: CloseCode, text: &str) {
        session.send(&ReceiverMessage::Refusal(refusal(code, text)));
        session.close(end, text);
        self.sessions.remove(&session.id);
        self.listening = Listening::anew(); // it did not go by itself
        self.happened(Event::Closed { session: session.id });
    }

    pub(super) fn begin_part(&mut self, session: SessionId, header: &PartHeader) -> BeginPart {
        let Some(link) = self.sessions.get(&session) else { return BeginPart::Drop };
        let Place::Here(here) = &self.place else { return BeginPart::Drop };
        let (key, part) = (header.key, header.part);
        match here.target.accepts_part(here.store.state(), session, key, part) {
            Ok(()) => {}
            Err(RefusalCode::Term | RefusalCode::Unknown) => return BeginPart::Swallow,
            Err(RefusalCode::Session) => return BeginPart::Drop,
            Err(_) => {
                let text = format!("part {part} of layer {key} was not to be sent");
                let link = Arc::clone(link);
                self.turn_away(&link, RefusalCode::Protocol, &text);
                return BeginPart::Drop;
            }
        }
        let begun = here.store.volume(key.volume).and_then(|volume| here.store.landing().begin_part(volume, key, part));
        match begun {
            Ok(lander) => BeginPart::Land(Box::new(lander)),
            Err(error) => BeginPart::Failed(error),
        }
    }

    pub(super) fn part(&mut self, session: SessionId, header: &PartHeader, outcome: PartOutcome) {
        if !self.sessions.contains_key(&session) {
            return;
        }
        let (key, part) = (header.key, header.part);
        let event = match outcome {
            PartOutcome::Landed(entry) => {
                self.tally.parts += 1;
                self.tally.part_bytes += entry.bytes;
                self.parts_failed = 0;
                Event::PartLanded { session, key, part, entry }
            }
            // Its bytes count as taken, or the source would run out of credit in the end.
            PartOutcome::Unwanted { bytes } => {
                Event::PartLanded { session, key, part, entry: PartEntry { bytes, footer_digest: [0; 32] } }
            }
            PartOutcome::Failed(error) => {
                self.tally.parts_failed += 1;
                let why = error.to_string();
                // † The source is told in the code, too: it is no fault of the connection, and it comes again at once.
                let code = if matches!(error, StoreError::Full { .. }) { CloseCode::Full } else { CloseCode::Refused };
                self.last_failure = Some((code, why.clone()));
                self.part_error(&error);
                Event::PartFailed { session, key, part, why }
            }
        };
        self.happened(event);
    }

    /// A part did not land. Nobody was told anything of it, so nothing else is in doubt; but if it happens again and again, this
    /// group waits for a while.
    fn part_error(&mut self, error: &StoreError) {
        match error {
            StoreError::Io { .. } if error.remedy() == Remedy::Reopen => {
                self.parts_failed += 1;
                if self.parts_failed >= PARTS_FAILED_MAX {
                    self.parts_failed = 0;
                    self.unwritable = Some(error.to_string());
                }
            }
            _ => self.store_error(error),
        }
    }
}

/// Says no to one claim, in words. The session goes on, and the claim comes again.
fn refuse_claim(to: &Session, request: &ClaimRequest, text: &str) {
    let volume = Some(request.claim.volume.id);
    to.send(&ReceiverMessage::Refusal(Refusal { volume, ..refusal(RefusalCode::Protocol, text) }));
    to.send(&ReceiverMessage::ClaimVerdict(request.not_taken()));
}

/// What a source is told that may not come back.
pub(crate) fn gone_for_good(names: &farside_store::GroupNames, winner: &str) -> String {
    format!(
        "{names} was failed over to {winner} for good (farside commit): remove its volumes here; or, to let this host have it back, on the gateway: \
         farside commit {names} --undo"
    )
}
