//! What the group's [`Target`](farside_replication::target::Target) asks for, done in the order given.

use std::time::{Duration, Instant};

use farside_ledger::{Body, KeptEnd, LayerKind, Policy, Verdict, volume_id};
use farside_region::{LayerKey, LedgerPosition, Name, VolumeId};
use farside_replication::target::{Action, AppendOutcome, Dated, Event, Report, SessionId, Ticket};
use farside_store::{Remedy, StoreError};
use farside_transport::CloseCode;
use farside_wire::{
    DAMAGED_VOLUMES_MAX, Damage, DamagedVolume, LedgerSlice, PointAnswer, PointQuery, ReceiverMessage, RefusalCode, RequestId,
};

use super::at_rest::Asker;
use super::fence::LastSlot;
use super::{Group, KEEP_AGAIN, Listening, Place};
use crate::points::{exact_slice, point_page, wire_run};
use crate::status;

impl Group {
    pub(super) fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { session, message } => {
                    if let ReceiverMessage::Published(published) = &*message {
                        self.published(published.kind, &published.layers);
                    }
                    if let ReceiverMessage::LedgerSlice(slice) = &*message {
                        self.unclaimed.answered(session, slice);
                    }
                    if let Some(link) = self.sessions.get(&session) {
                        if let ReceiverMessage::Credit(credit) = &*message {
                            link.grant(credit.granted_bytes);
                        }
                        link.send(&message);
                        if matches!(*message, ReceiverMessage::Hello(_)) && !self.damage.volumes.is_empty() {
                            link.send(&ReceiverMessage::Damage(self.damage.clone()));
                        }
                    }
                }
                Action::CloseSession { session, why } => self.close_session(session, why),
                Action::Append { ticket, records } => self.append(ticket, records),
                Action::Submitted { submission, outcome } => self.submitted(submission, outcome),
                Action::DropLayer { key } => {
                    self.beginnings.remove(&key);
                    self.drop_parts(key, 0);
                }
                Action::DropParts { key, from } => self.drop_parts(key, from),
                Action::KeepEnd { end, ago } => self.keep_end(&end, Duration::from_nanos(ago)),
                Action::ReadDigests { session, id, volume, run } => self.digests(session, id, volume, run),
                Action::AnswerLedger { session, slice, position } => self.answer_ledger(session, *slice, position),
                Action::AnswerPoints { session, query } => self.answer_points(session, &query),
                Action::GiveKey { session } => self.give_key(Asker::Session(session)),
                Action::KeepKey { session, wrapped } => self.keep_key(session, &wrapped),
                Action::Policy { policy, is_said } => self.set_policy(policy, is_said),
                Action::Prune => self.prune.due = true,
                Action::Report { volume, what } => self.report(volume, &what),
                other => tracing::error!(?other, "an action that this build does not know"),
            }
        }
    }

    fn close_session(&mut self, session: SessionId, why: &'static str) {
        let Some(link) = self.sessions.remove(&session) else { return };
        self.listening = Listening::anew(); // it did not go by itself
        let (code, words) = self.last_failure.take().unwrap_or_else(|| (CloseCode::Refused, why.to_owned()));
        tracing::info!(group = %self.names, %words, "closing a connection");
        // Returns when none of its parts can land any more, as the next action expects.
        link.close(code, &words);
    }

    /// Durable before the source hears of anything else: its claims name the key.
    fn keep_key(&mut self, session: SessionId, wrapped: &[u8]) {
        let Place::Here(here) = &mut self.place else { return };
        match here.store.keep_key(wrapped) {
            Ok((key, number)) => {
                tracing::debug!(group = %self.names, %key, number, "a wrapped key is in the store");
                self.events.push_front((Event::KeyKept { key }, None));
            }
            Err(error) => {
                tracing::warn!(group = %self.names, %error, "a wrapped key cannot be kept");
                let Some(link) = self.sessions.get(&session).cloned() else { return };
                self.turn_away(&link, RefusalCode::Store, &error.to_string());
                self.store_error(&error);
            }
        }
    }

    pub(super) fn append(&mut self, ticket: Ticket, records: Vec<Dated>) {
        if let Some(records) = self.upload_first(ticket, records) {
            self.put_records(ticket, records);
        }
    }

    /// Puts what the store does not have yet of what these records name, and then them.
    pub(super) fn put_records(&mut self, ticket: Ticket, records: Vec<Dated>) {
        if let [Dated { body: Body::Prune(prune), .. }] = &records[..]
            && !self.still_goes(prune)
        {
            self.prune.due = true;
            let text = "what was to be given up is kept since".to_owned();
            let outcome = AppendOutcome::Withdrawn { text };
            return self.events.push_front((Event::Appended { ticket, outcome }, None));
        }
        let Place::Here(here) = &mut self.place else { return };
        let kind = |body: &Body| match body {
            Body::Layers(layers) => Some(Some(layers.kind)),
            Body::Prune(_) => Some(None),
            _ => None,
        };
        let kinds: Vec<_> = records.iter().map(|said| kind(&said.body)).collect();
        let drawn = records.iter().map(|said| drawn_bytes(&said.body)).sum();
        let is_claim = records.iter().any(|said| matches!(said.body, Body::Claim(_)));
        let dated = |said: Dated| farside_store::Dated { body: said.body, ago: Duration::from_nanos(said.ago) };
        let outcome = match here.store.append_all(records.into_iter().map(dated).collect()) {
            Ok(appended) => {
                self.slot = LastSlot::Decided;
                self.unpin_in_doubt = false;
                self.receiver.space.draw(&self.names, drawn);
                self.reopen.reset();
                self.tally.publications += u64::from(kinds.iter().any(|kind| matches!(kind, Some(Some(_)))));
                for (kind, appended) in kinds.into_iter().zip(&appended) {
                    match kind.filter(|_| appended.verdict == Verdict::Accepted) {
                        Some(Some(LayerKind::Point)) => self.tally.points_published += 1,
                        Some(Some(LayerKind::Fuzzy)) => self.tally.passes_published += 1,
                        Some(None) => self.tally.prunes += 1,
                        None => {}
                    }
                }
                if is_claim {
                    self.count_volumes();
                    self.refuse_strangers();
                }
                self.denied = None;
                AppendOutcome::Judged { records: appended.into_iter().map(|its| (its.position, its.verdict)).collect() }
            }
            Err(error) => self.append_failed(error),
        };
        self.events.push_front((Event::Appended { ticket, outcome }, None));
        // Before more is published.
        if let Some(event) = self.budget() {
            self.events.push_front((event, None));
        }
    }

    pub(super) fn append_failed(&mut self, error: StoreError) -> AppendOutcome {
        match error {
            StoreError::Overtaken { .. } => AppendOutcome::Collided,
            error if error.remedy() == Remedy::Lose => {
                AppendOutcome::Unusable { layers: error.layer().into_iter().collect(), text: error.to_string() }
            }
            error => {
                self.store_error(&error);
                AppendOutcome::Failed { text: error.to_string() }
            }
        }
    }

    /// Tells the sources what the store has lost, when that has changed: they can send it again.
    pub(super) fn say_damage(&mut self) {
        let Place::Here(here) = &self.place else { return };
        let mut volumes = here.store.damaged_by_volume();
        // What a verification found lies in a segment at least.
        let found = self.receiver.schedule.found(&self.names);
        let named = found.damaged_volumes().into_iter().filter_map(|name| name.parse().ok());
        named.for_each(|name: Name| _ = volumes.entry(volume_id(&self.names.source, &self.names.group, &name)).or_insert(1));
        let volumes = volumes.into_iter().take(DAMAGED_VOLUMES_MAX);
        let damage = Damage { volumes: volumes.map(|(volume, segments)| DamagedVolume { volume, segments }).collect() };
        if damage != self.damage {
            self.damage = damage;
            let message = ReceiverMessage::Damage(self.damage.clone());
            self.sessions.values().for_each(|session| session.send(&message));
        }
    }

    /// Tells the connections of how many volumes there may be parts.
    pub(super) fn count_volumes(&self) {
        let Place::Here(here) = &self.place else { return };
        let volumes = here.store.state().volumes().count() as u64;
        self.sessions.values().for_each(|session| session.sends_of(volumes));
    }

    fn drop_parts(&mut self, key: LayerKey, from: u32) {
        let Place::Here(here) = &mut self.place else { return };
        if let Err(error) = here.store.drop_parts(key, from) {
            tracing::warn!(group = %self.names, %key, %error, "parts could not be deleted yet");
            self.store_error(&error);
        }
    }

    fn keep_end(&mut self, end: &KeptEnd, ago: Duration) {
        let Place::Here(here) = &self.place else { return };
        match here.store.keep_end(end, ago) {
            Ok(()) => drop(self.unkept.remove(&end.key)),
            Err(error) => {
                // Without it the layer waits for its source after a restart, and loses nothing.
                if self.unkept.insert(end.key) {
                    let key = end.key;
                    tracing::warn!(group = %self.names, %key, %error, "what was said of a staged layer could not be kept yet");
                }
            }
        }
    }

    /// Tries again to keep what could not be kept, from the first layer on, as far as it goes.
    pub(super) fn keep_ends(&mut self) {
        while let Some(key) = self.unkept.first().copied() {
            let Place::Here(here) = &self.place else { return };
            let Some((end, ago)) = here.target.end_to_keep(here.store.state(), &key) else {
                self.unkept.remove(&key);
                continue;
            };
            self.keep_end(&end, Duration::from_nanos(ago));
            if self.unkept.contains(&key) {
                return;
            }
        }
    }

    fn digests(&mut self, session: SessionId, id: RequestId, volume: VolumeId, run: farside_region::GranuleRun) {
        let Place::Here(here) = &self.place else { return };
        let runs = here.store.digests(volume, run).map(|runs| runs.into_iter().map(wire_run).collect());
        let runs = runs.map_err(|error| {
            if error.remedy() == Remedy::Reopen {
                self.store_error(&error);
            }
            error.to_string()
        });
        self.happened(Event::Digests { session, id, volume, start: run.start, runs });
    }

    fn answer_ledger(&mut self, session: SessionId, slice: LedgerSlice, position: Option<LedgerPosition>) {
        let (Place::Here(here), Some(link)) = (&self.place, self.sessions.get(&session).cloned()) else { return };
        match exact_slice(&here.store, slice, position) {
            Ok(slice) => {
                self.unclaimed.answered(session, &slice);
                link.send(&ReceiverMessage::LedgerSlice(slice));
            }
            Err(error) => {
                self.store_error(&error);
                self.turn_away(&link, RefusalCode::Store, &error.to_string());
            }
        }
    }

    fn answer_points(&mut self, session: SessionId, query: &PointQuery) {
        let (Place::Here(here), Some(link)) = (&self.place, self.sessions.get(&session)) else { return };
        let page = point_page(&here.store, &self.found(), query);
        link.send(&ReceiverMessage::Points(PointAnswer { id: query.id, page }));
    }

    fn set_policy(&mut self, policy: Policy, is_said: bool) {
        // † A host that stands in, or that was reinstalled, knows nothing of what the group had, and what is given up is gone for ever.
        if !is_said && !self.policy_is_default {
            self.policy_is_unsaid = self.policy.is_none();
            return;
        }
        (self.policy_is_unsaid, self.policy_unkept) = (false, None);
        let said = policy.clone();
        // † A host that stands in may have been told nothing of it, and what is given up is gone for ever: until the history is taken back only
        // more may be kept.
        let failovers = &self.receiver.failovers;
        let stands = failovers.stands(&self.names) && failovers.committed(&self.names).is_none();
        let policy = match self.policy.as_ref().filter(|_| stands && !self.policy_is_default) {
            Some(old) => old.with_what_fits_of(&policy),
            None => policy,
        };
        if policy.union(&said) != policy {
            self.policy_unkept = Some((said.clone(), status::retention_has_no_room(&self.names), Instant::now() + KEEP_AGAIN));
        }
        let (source, group) = (&self.names.source, &self.names.group);
        // A default that was never said is not remembered, so it is compared with what is.
        if self.receiver.policy_of(&self.names).as_ref() == Some(&policy) {
            self.policy = Some(policy);
            self.policy_is_default = false;
            return;
        }
        if let Err(error) = self.receiver.state_dir.remember_policy(source, group, &policy) {
            tracing::warn!(group = %self.names, %error, "what is to be kept could not be remembered");
            // What is given up is gone for ever: until it is remembered, only more may be kept. † And the next process knows of nothing else.
            let why = status::retention_is_unkept(&self.names, &error.to_string());
            self.policy_unkept = Some((said, why, Instant::now() + KEEP_AGAIN));
            self.policy = self.policy.as_ref().map(|old| old.with_what_fits_of(&policy));
            self.policy_is_default = false;
            return;
        }
        let (keep, span_ms, rules) = (policy.keep, policy.span_ms, policy.grid.rules());
        tracing::info!(group = %self.names, keep, span_ms, ?rules, "the source says what is to be kept");
        self.policy = Some(policy);
        self.policy_is_default = false;
        self.prune.due = true;
    }

    /// What its source said and could not be remembered is, once it can.
    pub(super) fn keep_policy(&mut self) {
        if let Some((policy, ..)) = self.policy_unkept.take_if(|(.., at)| *at <= Instant::now()) {
            self.set_policy(policy, true);
        }
    }

    /// Remembers since when the newest point's content is old.
    fn published(&mut self, kind: LayerKind, layers: &[LayerKey]) {
        let begun = layers.iter().filter_map(|key| self.beginnings.remove(key)).min();
        if kind == LayerKind::Point
            && let Some(begun) = begun
        {
            self.cut_seen.extend(layers.iter().map(|key| (key.volume, begun)));
        }
    }

    fn report(&self, volume: Option<VolumeId>, what: &Report) {
        let name = volume.and_then(|id| match &self.place {
            Place::Here(here) => here.store.state().volume(id).map(|v| v.meta().name.to_string()),
            Place::Away { .. } => None,
        });
        let (group, volume) = (&self.names, name.unwrap_or_default());
        match what {
            Report::Judged { position, verdict } => tracing::debug!(%group, slot = %position.slot, ?verdict, "a record"),
            Report::Unusable { text } => tracing::error!(%group, %text, "a record cannot be made; what it named is lost"),
            Report::Withdrawn { text } => tracing::info!(%group, %text, "a record is not made; what it says is decided anew"),
            Report::AppendFailed { text } => tracing::error!(%group, %text, "nothing can be published"),
            Report::Dropped { key, why } => tracing::info!(%group, volume, %key, ?why, "a layer was dropped"),
            Report::PartFailed { key, part, why } => tracing::warn!(%group, volume, %key, part, %why, "a part did not land"),
            Report::SessionRefused { why } => tracing::info!(%group, why, "a connection is ended"),
            other => tracing::debug!(%group, ?other, "a report"),
        }
    }
}

/// What a record takes of the disk, about, that no credit was for.
fn drawn_bytes(body: &Body) -> u64 {
    match body {
        Body::Layers(layers) if layers.members.iter().any(|m| !m.parts.is_empty()) => 0,
        Body::Layers(layers) => 4096 + layers.members.iter().map(|m| 12 * m.regions.range_count() as u64).sum::<u64>(),
        Body::Prune(_) => 0,
        other => super::merges::drawn_bytes(other),
    }
}
