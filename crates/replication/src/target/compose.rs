//! One append at a time: what comes next, and what its verdict means (T11, T15).
//!
//! Of all records only those of layers come several at once, when `cadence` says so: each is composed and judged as if those before
//! it were in the ledger already, since they will be if it is.

use farside_ledger::{
    BATCH_SLOTS, Body, Claim, Heartbeat, LayerEntry, LayerKind, Layers, Record, Stamp, State, TrackingLost, Verdict, Verified,
    VerifiedHow, VoidReason,
};
use farside_region::{LayerKey, LedgerPosition, Seq, Slot, Term, VolumeId, mutation};
use farside_wire::{
    ClaimOutcome, ClaimVerdict, Compared, InstanceId, LossRecorded, LossReport, Lost, Notice, Published, ReceiverMessage,
    RefusalCode, RequestId, Void,
};

use super::api::{Action, AppendOutcome, Dated, DropWhy, Report, SessionId, Ticket};
use super::cadence::Batch;
use super::landing::{Landing, carries_terms};
use super::sessions::bounded;
use super::{Target, Trouble};
use crate::source::Nanos;

/// A mistake.
const FORGOTTEN: &str = "L6 who claimed is forgotten with its line";
pub(super) const RETRIED: &str = "a layer retried at a later slot";

#[derive(Clone, Debug)]
pub(super) struct QueuedClaim {
    pub(super) session: SessionId,
    /// The run of the source that asked. † Its session may be gone when the record is there; what it claimed is its own all the same.
    pub(super) instance: InstanceId,
    pub(super) id: RequestId,
    pub(super) claim: Claim,
}

/// The append that is under way.
#[derive(Debug)]
pub(super) struct Appending {
    ticket: Ticket,
    /// When it was asked for.
    since: Nanos,
    what: What,
}

#[derive(Debug)]
enum What {
    Claim(QueuedClaim),
    Submission {
        submission: u64,
        body: Body,
    },
    /// One or more records of layers.
    Layers(Vec<Composed>),
    Loss {
        session: SessionId,
        report: LossReport,
    },
    Heartbeat,
    Compared {
        point: Slot,
    },
}

/// A store is tried again after so long at last, however long it took to fail: it may be well again.
const LEFT_ALONE_MAX: Nanos = 300 * 1_000_000_000;
/// So long layers that wait are tried before claims that would drop them, while nothing succeeds.
const CLAIMS_WAIT: Nanos = 6 * 3600 * 1_000_000_000;

/// A record of layers, as its verdict will have to be understood.
#[derive(Debug)]
pub(super) struct Composed {
    kind: LayerKind,
    keys: Vec<LayerKey>,
}

impl Target {
    /// Claims first, then what the receiver itself wants (a full store must be able to prune), then layers, then heartbeats.
    pub(super) fn append_next(&mut self, now: Nanos, state: &State, out: &mut Vec<Action>) {
        if self.appending.is_some() {
            return;
        }
        if let Some((submission, body)) = self.submissions.pop_front() {
            return self.append(now, What::Submission { submission, body: body.clone() }, body, out);
        }
        if self.is_left_alone(now) {
            return;
        }
        if self.in_time(now)
            && self.has_spare(self.config.limits.file_bytes)
            && let Some((_, (session, report))) = self.losses.pop_first()
        {
            // A host's cold writes may wait for this one. At most one per record of a claim or layer.
            self.charge(now, self.config.limits.file_bytes);
            let body = Body::TrackingLost(TrackingLost { volume: report.volume, term: report.term });
            return self.append(now, What::Loss { session, report }, body, out);
        }
        // A claim ends the term of what is staged and waits, which may exist nowhere else.
        if self.hurried && self.config.limits.publish_every > 0 && !self.claims_come_first(now) {
            self.layers_next(now, state, out);
        }
        if self.appending.is_none() {
            self.claim_next(now, state, out);
        }
        if self.appending.is_none() {
            self.layers_next(now, state, out);
        }
        if self.appending.is_none()
            && let Some(heartbeat) = self.heartbeat_due(now, state)
            && self.has_spare(self.config.limits.file_bytes)
        {
            self.append(now, What::Heartbeat, Body::Heartbeat(heartbeat), out);
        }
        if self.appending.is_none()
            && self.in_time(now)
            && self.has_spare(self.config.limits.file_bytes)
            && let Some(point) = self.compared_point(state)
        {
            self.charge(now, self.config.limits.file_bytes);
            self.append(now, What::Compared { point }, Body::Verified(Verified { point, how: VerifiedHow::WithSource }), out);
        }
    }

    /// Whether layers that cannot be appended are to hold up claims no longer. That the store failed says nothing: as a rule it fails
    /// for claims as well, and the first that succeeds after an outage must not be the one that drops what waited for its end. Nor does a
    /// disk that is nearly full: publication makes room on it, too.
    fn claims_come_first(&self, now: Nanos) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| now >= trouble.since.saturating_add(CLAIMS_WAIT))
    }

    fn claim_next(&mut self, now: Nanos, state: &State, out: &mut Vec<Action>) {
        while let Some(queued) = self.claims.front() {
            let foreseen = match unseen_loss(state, &queued.claim) {
                Some(lost) => (Body::Claim(queued.claim.clone()), Verdict::Void(VoidReason::ClaimOvertaken { last_layer: lost })),
                None => self.foreseen(state, Body::Claim(queued.claim.clone())),
            };
            match foreseen {
                (body, Verdict::Accepted) => {
                    if self.in_time(now) && self.has_spare(self.config.limits.file_bytes) {
                        let queued = self.claims.pop_front().expect("it was just looked at");
                        self.charge(now, self.config.limits.file_bytes);
                        self.append(now, What::Claim(queued), body, out);
                    }
                    return;
                }
                // What would be void needs no slot; claimants that quarrel or guess would fill the ledger.
                (_, Verdict::Void(reason)) => {
                    let queued = self.claims.pop_front().expect("it was just looked at");
                    self.answer_claim(&queued, ClaimOutcome::Void { reason }, out);
                }
            }
        }
    }

    fn layers_next(&mut self, now: Nanos, state: &State, out: &mut Vec<Action>) {
        if !self.is_due(now) {
            return;
        }
        let (mut batch, mut composed) = (Batch::new(state, self.room(state), self.config.limits.publish_bytes), Vec::new());
        while self.in_time(now) && batch.has_room() {
            let served = self.served;
            let Some(layers) = self.compose(batch.state()) else { break };
            let (kind, keys): (_, Vec<LayerKey>) = (layers.kind, layers.members.iter().map(|m| m.key).collect());
            if let Some(key) = self.beyond_help(batch.state(), &layers) {
                let text = format!("layer {key}: more unreadable places than are kept track of; the disk must be replaced");
                self.sessions.keys().for_each(|&to| self.refuse(to, RefusalCode::Protocol, Some(key.volume), &text, out));
                self.lose(key, DropWhy::Unusable, out);
                continue;
            }
            let cost_bytes = self.cost_bytes(&keys);
            let ago = keys.first().and_then(|key| self.whole_since(key)).map_or(0, |since| now.saturating_sub(since));
            let foreseen = self.foreseen(batch.state(), Body::Layers(layers));
            match foreseen {
                (body, Verdict::Accepted) => {
                    if !batch.add(Dated { body, ago }) {
                        self.served = served;
                        break;
                    }
                    if kind == LayerKind::Fuzzy && self.landed_of(&keys) == 0 && !self.has_room(cost_bytes) {
                        keys.iter().for_each(|key| *self.empty_slices.entry(key.volume).or_default() += 1);
                    }
                    self.charge(now, cost_bytes);
                    composed.push(Composed { kind, keys });
                }
                // Nothing that a slot could change; other records may.
                (_, Verdict::Void(VoidReason::Seq { .. } | VoidReason::PointOverGap { .. } | VoidReason::BrokenChain)) => break,
                // What is void may be so because of a record that is not in the ledger yet.
                (_, Verdict::Void(_)) if !composed.is_empty() => break,
                (_, Verdict::Void(reason)) => self.layers_void(state, keys, reason, out),
            }
        }
        if composed.is_empty() {
            // All that can be published is.
            self.hurried &= !self.in_time(now);
        } else {
            self.append_all(now, What::Layers(composed), batch.into_records(), out);
        }
    }

    /// Whether sources had few enough records made lately that one more may follow.
    fn in_time(&self, now: Nanos) -> bool {
        let limits = &self.config.limits;
        self.records_due <= now.saturating_add(limits.record_interval.saturating_mul(limits.record_burst))
    }

    /// Whether the disk has more than what is kept back, and others were not granted that.
    fn has_room(&self, bytes: u64) -> bool {
        self.disk.is_none_or(|disk| disk.free_bytes >= bytes)
    }

    /// Whether a small record may draw on what is kept back, of which half stays for pruning. It is for records without which a
    /// full disk stays full (a claim lets go what an older term left, a point after a pass lets old points go, a heartbeat lets
    /// them age), or something is forgotten for ever (a loss of tracking). Each of them has a pace of its own.
    fn has_spare(&self, bytes: u64) -> bool {
        if mutation::on("L5 a full store takes no claim") {
            return self.has_room(bytes);
        }
        self.disk.is_none_or(|disk| disk.spare_bytes >= bytes)
    }

    fn charge(&mut self, now: Nanos, bytes: u64) {
        self.records_due = self.records_due.max(now).saturating_add(self.config.limits.record_interval);
        if let Some(disk) = &mut self.disk {
            disk.take(bytes);
        }
    }

    /// What a record of these layers takes of the disk, about.
    fn cost_bytes(&self, keys: &[LayerKey]) -> u64 {
        let of = |landing: &Landing| {
            let ranges =
                landing.end.as_ref().map_or(0, |end| end.this.regions.range_count() + end.this.unreadable_regions.range_count());
            (128 + 48 * landing.parts.len() + 12 * ranges) as u64
        };
        let landings = keys.iter().filter_map(|key| self.layers.get(key));
        landings.map(of).sum::<u64>().max(self.config.limits.file_bytes)
    }

    /// What landed had credit, and the record that names it may use what is kept back: else a disk that is full would never
    /// see the new point for which an old one can go. So may the point that a last pass waits for, though it brings nothing, and
    /// slices of a pass that found nothing to send, as a compare of what is equal makes them: the next point waits for all of
    /// them. There may be as many as a source can have on their way; one that hears of the full disk makes one of what is left.
    /// Other records that bring nothing, or say more than they bring, need room.
    fn is_paid(&self, state: &State, kind: LayerKind, keys: &[LayerKey]) -> bool {
        let landed = self.landed_of(keys);
        let cost_bytes = self.cost_bytes(keys);
        let is_due = |key: &LayerKey| state.volume(key.volume).is_some_and(|volume| volume.ends_fuzzy());
        let drawn = |key: &LayerKey| self.empty_slices.get(&key.volume).copied().unwrap_or(0);
        let due = match kind {
            LayerKind::Point => keys.iter().any(is_due),
            LayerKind::Fuzzy => landed == 0 && keys.iter().all(|key| drawn(key) < self.config.limits.layers_max),
        };
        landed >= cost_bytes || self.has_room(cost_bytes) || (due && self.has_spare(cost_bytes))
    }

    /// What the disk holds of these layers.
    fn landed_of(&self, keys: &[LayerKey]) -> u64 {
        let parts = keys.iter().filter_map(|key| self.layers.get(key)).flat_map(|landing| landing.parts.values());
        parts.fold(0_u64, |sum, part| sum.saturating_add(part.bytes.max(self.config.limits.file_bytes)))
    }

    /// A member with which its volume would have more unreadable places than are kept track of.
    fn beyond_help(&self, state: &State, layers: &Layers) -> Option<LayerKey> {
        let too_many = |member: &&LayerEntry| {
            let before = state.volume(member.key.volume).map_or(0, |v| v.unreadable().range_count());
            let now = member.unreadable_regions.range_count();
            now > 0 && before + now > self.config.limits.unreadable_ranges_max
        };
        layers.members.iter().find(too_many).map(|member| member.key)
    }

    /// What a record would come to in the next slot. Another writer may have taken that already: then the append collides, and
    /// it is judged again.
    fn foreseen(&self, state: &State, body: Body) -> (Body, Verdict) {
        if carries_terms() || mutation::on(RETRIED) {
            return (body, Verdict::Accepted);
        }
        let record = Record {
            group: state.group(),
            slot: state.next_slot(),
            prev: state.prev(),
            nonce: [0; 16],
            stamp: Stamp { writer: [0; 16], mono_ms: 0, wall_ms: 0 },
            body,
        };
        let verdict = state.judge(&record);
        (record.body, verdict)
    }

    fn append(&mut self, now: Nanos, what: What, body: Body, out: &mut Vec<Action>) {
        self.append_all(now, what, vec![Dated { body, ago: 0 }], out);
    }

    fn append_all(&mut self, now: Nanos, what: What, records: Vec<Dated>, out: &mut Vec<Action>) {
        self.last_ticket.0 += 1;
        self.appending = Some(Appending { ticket: self.last_ticket, since: now, what });
        out.push(Action::Append { ticket: self.last_ticket, records });
    }

    /// The next record of layers: of the layers that the volumes' chains wait for, the one that is staged longest, alone if fuzzy,
    /// with all its fellow members, or not at all, if a point; the volumes in turn where that is equal.
    ///
    /// Ledger time never runs back: a record that is staged before another and comes after it would have the other's time, and of two
    /// points at one time a grid keeps one.
    fn compose(&mut self, state: &State) -> Option<Layers> {
        let volumes: Vec<VolumeId> = state.volumes().map(|(id, _)| id).collect();
        let first = self.served.map_or(0, |served| volumes.partition_point(|id| *id <= served));
        let in_turn = volumes[first..].iter().chain(&volumes[..first]);
        let mut waiting: Vec<(Nanos, VolumeId, LayerKey)> = in_turn
            .filter_map(|&id| {
                let key = self.candidate(state, id)?;
                Some((self.whole_since(&key)?, id, key))
            })
            .collect();
        waiting.sort_by_key(|(since, ..)| *since);
        for (_, id, key) in waiting {
            if let Some(layers) = self.record_of(state, &key) {
                self.served = Some(id);
                return Some(layers);
            }
        }
        None
    }

    /// Since when all that a record of this layer would name is staged, as far as that is known.
    fn whole_since(&self, key: &LayerKey) -> Option<Nanos> {
        let landing = self.layers.get(key).filter(|landing| landing.is_staged())?;
        let fellows = landing.end.as_ref().filter(|end| end.kind == LayerKind::Point).map_or(&[] as &[_], |end| &*end.members);
        let since = fellows.iter().filter_map(|fellow| self.layers.get(fellow)?.staged_since()).max();
        since.max(landing.staged_since())
    }

    /// The layer that a volume's chain waits for.
    fn candidate(&self, state: &State, id: VolumeId) -> Option<LayerKey> {
        let next = state.volume(id)?.next_key();
        if mutation::on(RETRIED) && !self.is_staged(&next) {
            let older = LayerKey { seq: Seq(next.seq.0.saturating_sub(2)), ..next };
            return Some(older);
        }
        if carries_terms() && !self.is_staged(&next) {
            let stray = self.layers_of(id).find(|(k, l)| l.is_staged() && state.layer(k).is_none());
            return stray.map(|(k, _)| *k);
        }
        Some(next)
    }

    fn is_staged(&self, key: &LayerKey) -> bool {
        self.layers.get(key).is_some_and(Landing::is_staged)
    }

    fn record_of(&self, state: &State, key: &LayerKey) -> Option<Layers> {
        let end = self.layers.get(key).filter(|l| l.is_staged())?.end.as_ref()?;
        let (kind, epoch) = (end.kind, end.epoch);
        let stray = (mutation::on(RETRIED) || carries_terms()) && state.volume(key.volume)?.next_key() != *key;
        let alone = kind == LayerKind::Fuzzy || stray || mutation::on("publish one volume at a time");
        let keys = if alone { vec![*key] } else { end.members.to_vec() };
        if !alone && !keys.iter().all(|member| self.is_ready(state, member, &keys)) {
            return None;
        }
        if !self.is_paid(state, kind, &keys) {
            return None;
        }
        let members = keys.iter().map(|member| self.entry_of(state, member)).collect::<Option<Vec<_>>>()?;
        // What was a point and is none any more has no label.
        let label = end.label.clone().filter(|_| kind == LayerKind::Point && !alone);
        Some(Layers { kind, epoch, label, members })
    }

    /// A member of a point is staged, next in its chain, and knows the point under the same members.
    fn is_ready(&self, state: &State, key: &LayerKey, members: &[LayerKey]) -> bool {
        let next = state.volume(key.volume).is_some_and(|v| v.next_key() == *key);
        let agreed =
            |l: &Landing| l.is_staged() && l.end.as_ref().is_some_and(|e| e.kind == LayerKind::Point && *e.members == *members);
        next && self.layers.get(key).is_some_and(agreed)
    }

    fn entry_of(&self, state: &State, key: &LayerKey) -> Option<LayerEntry> {
        let landing = self.layers.get(key)?;
        let this = &landing.end.as_ref()?.this;
        let volume = state.volume(key.volume)?;
        let regions = this.regions.regions();
        Some(LayerEntry {
            key: *key,
            digest: this.digest,
            parts: landing.parts.values().copied().collect(),
            unreadable_regions: volume.unreadable_after(
                &regions,
                &this.whole_regions.regions(),
                &this.unreadable_regions.regions(),
            ),
            regions,
            volume_bytes: this.volume_bytes,
        })
    }

    pub(super) fn heard(&mut self, now: Nanos, state: &State, heartbeat: Heartbeat) {
        let holds = heartbeat.members.iter().all(|(id, term)| {
            let volume = state.volume(*id);
            volume.is_some_and(|v| v.term() == *term && v.last_layer().is_none_or(|l| l.slot <= heartbeat.position.slot))
        });
        if !holds || !state.holds(&heartbeat.position) {
            return;
        }
        for (id, _) in &heartbeat.members {
            self.quiet.insert(*id, (heartbeat.t, now));
        }
        self.heartbeat = Some(heartbeat);
    }

    fn heartbeat_due(&self, now: Nanos, state: &State) -> Option<Heartbeat> {
        let due = now >= self.recorded_at.saturating_add(self.config.limits.heartbeat_record);
        let heartbeat = self.heartbeat.as_ref().filter(|_| due)?;
        // It lets points age, and tells the next process how old the newest one is: late, both err on the safe side. What is staged in other
        // groups would wait for what it costs.
        if self.spent && self.config.limits.publish_every > 0 {
            return None;
        }
        // What is staged was staged before, and would have the ledger time of this record.
        if self.layers.values().any(Landing::is_staged) {
            return None;
        }
        let volume = heartbeat.members.first().and_then(|(id, _)| state.volume(*id))?;
        let news = volume.quiet().is_none_or(|(_, t)| t != heartbeat.t);
        news.then(|| heartbeat.clone())
    }

    pub(super) fn appended(&mut self, now: Nanos, state: &State, ticket: Ticket, outcome: AppendOutcome, out: &mut Vec<Action>) {
        let Some(Appending { what, since, .. }) = self.appending.take_if(|a| a.ticket == ticket) else { return };
        match outcome {
            AppendOutcome::Judged { records } => {
                let report =
                    |&(position, verdict): &_| Action::Report { volume: None, what: Report::Judged { position, verdict } };
                out.extend(records.iter().map(report));
                self.together = self.together.saturating_mul(2).min(BATCH_SLOTS);
                if self.trouble.take().is_some() {
                    self.store_is_well(out);
                }
                self.judged(now, state, what, &records, out);
            }
            AppendOutcome::Collided => {
                match what {
                    What::Claim(queued) => self.claims.push_front(queued),
                    What::Submission { submission, body } => self.submissions.push_front((submission, body)),
                    What::Loss { session, report } => self.loss_reported(state, session, report, out),
                    What::Layers(_) | What::Heartbeat | What::Compared { .. } => {}
                }
                self.others_wrote(state, out);
            }
            AppendOutcome::Failed { text } => {
                self.append_failed(now, since, what, text, out);
                // Looking for what became of ours may have brought records of others.
                self.others_wrote(state, out);
            }
            AppendOutcome::Unusable { layers, text } => self.unusable(state, what, &layers, text, out),
            AppendOutcome::Withdrawn { text } => match what {
                What::Submission { submission, .. } => {
                    out.push(Action::Report { volume: None, what: Report::Withdrawn { text: text.clone() } });
                    out.push(Action::Submitted { submission, outcome: AppendOutcome::Withdrawn { text } });
                }
                // Nobody who could withdraw it.
                what => self.unusable(state, what, &[], text, out),
            },
        }
    }

    /// Trying again would fail for ever, and hold up all that comes after: what the record named is lost (T5).
    fn unusable(&mut self, state: &State, what: What, blamed: &[LayerKey], text: String, out: &mut Vec<Action>) {
        out.push(Action::Report { volume: None, what: Report::Unusable { text: text.clone() } });
        match what {
            // Nobody knows which of the records is at fault: the first one, alone, comes next.
            What::Layers(composed) if composed.len() > 1 && blamed.is_empty() => self.together = 1,
            What::Layers(composed) => {
                let mut keys: Vec<LayerKey> = composed.into_iter().flat_map(|composed| composed.keys).collect();
                if keys.iter().any(|key| blamed.contains(key)) {
                    keys.retain(|key| blamed.contains(key));
                }
                for key in keys {
                    if state.layer(&key).is_some() {
                        self.published_before(state, key, out);
                    } else if self.layers.contains_key(&key) {
                        self.lose(key, DropWhy::Unusable, out);
                    }
                }
            }
            What::Claim(queued) => {
                if self.sessions.contains_key(&queued.session) {
                    self.refuse(queued.session, RefusalCode::Protocol, None, &text, out);
                    self.close(queued.session, "a claim that cannot be recorded", out);
                }
            }
            What::Submission { submission, .. } => {
                let outcome = AppendOutcome::Unusable { layers: blamed.to_vec(), text };
                out.push(Action::Submitted { submission, outcome });
            }
            What::Loss { session, report } => self.refuse_loss(session, report, RefusalCode::Protocol, &text, out),
            What::Heartbeat => self.heartbeat = None,
            What::Compared { .. } => self.compared.clear(),
        }
    }

    /// Records came in that this process did not append (a dead predecessor's write that was stalled): what they published is
    /// published, what they made impossible is void. Nobody else would ever tell the source.
    fn others_wrote(&mut self, state: &State, out: &mut Vec<Action>) {
        let (published, others): (Vec<LayerKey>, Vec<LayerKey>) = self.layers.keys().partition(|key| state.layer(key).is_some());
        published.into_iter().for_each(|key| self.published_before(state, key, out));
        let over = |key: &LayerKey| state.volume(key.volume).is_none_or(|v| v.term() != key.term || v.last_seq() >= key.seq);
        let void: Vec<LayerKey> = others.into_iter().filter(over).collect();
        if !void.is_empty() && !carries_terms() {
            self.forget(state, &void, out);
            self.broadcast(&ReceiverMessage::Void(Void { layers: void }), out);
        }
    }

    /// An accepted record names this layer already: the source hears of it under that record.
    fn published_before(&mut self, state: &State, key: LayerKey, out: &mut Vec<Action>) {
        self.layers.remove(&key);
        let Some(fact) = state.layer(&key) else { return };
        let Some(digest) = state.digest_at(fact.slot) else { return };
        let position = LedgerPosition { slot: fact.slot, digest };
        self.broadcast(&ReceiverMessage::Published(Published { position, kind: fact.kind, layers: vec![key] }), out);
    }

    fn append_failed(&mut self, now: Nanos, since: Nanos, what: What, text: String, out: &mut Vec<Action>) {
        // † Nothing of the group is heard while its store takes its time to fail: parts that wait get as much of the time as the attempts.
        let took = now.saturating_sub(since);
        let retry_at = now.saturating_add(self.config.limits.append_retry.max(took.min(LEFT_ALONE_MAX)));
        if self.trouble.as_ref().is_none_or(|t| t.text != text) {
            let notice = Notice::StoreFailed { text: bounded(&text) };
            self.broadcast(&ReceiverMessage::Notice(notice), out);
            out.push(Action::Report { volume: None, what: Report::AppendFailed { text: text.clone() } });
        }
        let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
        self.trouble = Some(Trouble { text: text.clone(), since, retry_at });
        match what {
            What::Claim(queued) => self.claims.push_front(queued),
            What::Submission { submission, .. } => {
                out.push(Action::Submitted { submission, outcome: AppendOutcome::Failed { text } });
            }
            What::Loss { session, report } => _ = self.losses.insert(report.volume, (session, report)),
            What::Layers(composed) => self.together = (composed.len() as u64 / 2).max(1),
            What::Heartbeat | What::Compared { .. } => {}
        }
    }

    fn judged(&mut self, now: Nanos, state: &State, what: What, records: &[(LedgerPosition, Verdict)], out: &mut Vec<Action>) {
        if let What::Layers(composed) = what {
            self.recorded_at = now;
            for (Composed { kind, keys }, &(position, verdict)) in composed.into_iter().zip(records) {
                if kind == LayerKind::Point && verdict == Verdict::Accepted {
                    self.empty_slices.retain(|volume, _| keys.iter().all(|key| key.volume != *volume));
                }
                self.layers_judged(state, kind, keys, position, verdict, out);
            }
            return;
        }
        let Some(&(position, verdict)) = records.first() else { return };
        match what {
            What::Claim(queued) => self.claim_judged(state, queued, position, verdict, out),
            What::Submission { submission, body } => {
                out.push(Action::Submitted { submission, outcome: AppendOutcome::Judged { records: records.to_vec() } });
                if verdict == Verdict::Accepted && matches!(body, Body::Unpin(_) | Body::Prune(_)) {
                    out.push(Action::Prune);
                }
            }
            What::Layers(_) => unreachable!("said above"),
            What::Loss { session, report } => match verdict {
                Verdict::Accepted | Verdict::Void(VoidReason::Duplicate) => self.loss_recorded(session, report, out),
                Verdict::Void(reason) => self.refuse_loss(session, report, RefusalCode::Term, &reason.to_string(), out),
            },
            What::Compared { point } => {
                if let (Verdict::Accepted, Some(point)) = (verdict, state.points().get(&point)) {
                    point.members.iter().for_each(|member| _ = self.compared.remove(&member.key.volume));
                }
            }
            What::Heartbeat => {
                self.recorded_at = now;
                // Not to be said again: void is void (T15).
                if verdict != Verdict::Accepted {
                    self.heartbeat = None;
                } else {
                    out.push(Action::Prune);
                }
            }
        }
    }

    /// A source held a volume against what is published. Nothing is remembered of what is not so here.
    pub(super) fn was_compared(&mut self, state: &State, compared: &Compared) {
        let Compared { volume, term, position } = *compared;
        if state.volume(volume).is_some_and(|known| known.term() == term) && state.holds(&position) {
            self.compared.insert(volume, (term, position.slot));
        }
    }

    /// The newest point, if all its members were compared with their sources as they are in it, or before. What came in between
    /// came from there. One that its source could not read all of is not equal to anything.
    fn compared_point(&mut self, state: &State) -> Option<Slot> {
        self.compared.retain(|id, (term, _)| state.volume(*id).is_some_and(|volume| volume.term() == *term));
        let (&slot, point) = state.points().last_key_value().filter(|(_, point)| !self.compared.is_empty() && !point.degraded)?;
        let is_compared = |id: VolumeId| {
            let (_, at) = self.compared.get(&id)?;
            state.layers_above(id, Some(slot)).all(|layer| layer.slot > *at).then_some(())
        };
        point.members.iter().all(|member| is_compared(member.key.volume).is_some()).then_some(())?;
        Some(slot)
    }

    /// A source lost track of what changes, and asks the ledger to remember it. One per volume waits at most.
    pub(super) fn loss_reported(&mut self, state: &State, from: SessionId, report: LossReport, out: &mut Vec<Action>) {
        match state.volume(report.volume).filter(|v| v.term() == report.term) {
            None => self.refuse_loss(from, report, RefusalCode::Term, "another claim of the volume is current", out),
            // As good as a new record, and costs no slot.
            Some(volume) if volume.tracking_lost_since_header_moved() => self.loss_recorded(from, report, out),
            Some(_) => _ = self.losses.insert(report.volume, (from, report)),
        }
    }

    fn loss_recorded(&self, session: SessionId, report: LossReport, out: &mut Vec<Action>) {
        if self.sessions.contains_key(&session) {
            let LossReport { id, volume, .. } = report;
            self.send(session, ReceiverMessage::LossRecorded(LossRecorded { id, volume }), out);
        }
    }

    fn refuse_loss(&self, session: SessionId, report: LossReport, code: RefusalCode, text: &str, out: &mut Vec<Action>) {
        if self.sessions.contains_key(&session) {
            self.refuse(session, code, Some(report.volume), text, out);
        }
    }

    fn claim_judged(
        &mut self,
        state: &State,
        queued: QueuedClaim,
        position: LedgerPosition,
        verdict: Verdict,
        out: &mut Vec<Action>,
    ) {
        let volume = queued.claim.volume.id;
        if verdict == Verdict::Accepted {
            self.empty_slices.remove(&volume);
        }
        let outcome = match verdict {
            Verdict::Accepted => {
                let term = Term(position.slot.0);
                match self.sessions.contains_key(&queued.session) || !mutation::on(FORGOTTEN) {
                    true => self.claimants.insert(volume, (term, queued.instance)),
                    false => self.claimants.remove(&volume),
                };
                self.drop_old_terms(volume, term, out);
                ClaimOutcome::Accepted { position }
            }
            Verdict::Void(reason) => ClaimOutcome::Void { reason },
        };
        self.answer_claim(&queued, outcome, out);
        if outcome == (ClaimOutcome::Accepted { position }) {
            self.holds(state, queued.session, volume, Term(position.slot.0), out);
            self.overtake(state, queued.session);
        }
    }

    fn answer_claim(&self, queued: &QueuedClaim, outcome: ClaimOutcome, out: &mut Vec<Action>) {
        if self.sessions.contains_key(&queued.session) {
            let answer = ClaimVerdict { id: queued.id, volume: queued.claim.volume.id, outcome };
            self.send(queued.session, ReceiverMessage::ClaimVerdict(answer), out);
        }
    }

    fn layers_judged(
        &mut self,
        state: &State,
        kind: LayerKind,
        keys: Vec<LayerKey>,
        position: LedgerPosition,
        verdict: Verdict,
        out: &mut Vec<Action>,
    ) {
        match verdict {
            Verdict::Void(reason) if !mutation::on("accept a void record") => self.layers_void(state, keys, reason, out),
            _ => {
                if !mutation::on(RETRIED) {
                    keys.iter().for_each(|key| drop(self.layers.remove(key)));
                }
                self.broadcast(&ReceiverMessage::Published(Published { position, kind, layers: keys }), out);
                // Fuzzy layers too: they take space, and perhaps nothing was pruned after the point before.
                out.push(Action::Prune);
            }
        }
    }

    /// What a record's being void means for the layers in it.
    fn layers_void(&mut self, state: &State, keys: Vec<LayerKey>, reason: VoidReason, out: &mut Vec<Action>) {
        match reason {
            // Somebody published them before: each under its own record.
            VoidReason::Duplicate => keys.into_iter().for_each(|key| self.published_before(state, key, out)),
            VoidReason::Term { .. } | VoidReason::UnknownVolume(_) => {
                self.forget(state, &keys, out);
                self.broadcast(&ReceiverMessage::Void(Void { layers: keys }), out);
            }
            // Composed anew from the state as it is now.
            VoidReason::Seq { .. } | VoidReason::PointOverGap { .. } | VoidReason::BrokenChain => {}
            reason => {
                self.forget(state, &keys, out);
                let code = match reason {
                    VoidReason::DuplicateDiffers(_) => RefusalCode::DuplicateDiffers,
                    _ => RefusalCode::Protocol,
                };
                let text = format!("the record of layer {} is void: {reason}", keys[0]);
                let volume = Some(keys[0].volume);
                self.sessions.keys().for_each(|&session| self.refuse(session, code, volume, &text, out));
                self.broadcast(&ReceiverMessage::Lost(Lost { layers: keys }), out);
            }
        }
    }

    /// Drops landed data that no record will ever name; never what an accepted record does.
    fn forget(&mut self, state: &State, keys: &[LayerKey], out: &mut Vec<Action>) {
        for key in keys {
            self.layers.remove(key);
            if state.layer(key).is_none() {
                out.push(Action::DropLayer { key: *key });
            }
        }
    }
}

/// A loss of tracking on record that the claimant has not seen: an attach before it said that, and died before this was written. Its
/// claim would lie above the record, and so would its header: it must look again (see `source::loss`).
fn unseen_loss(state: &State, claim: &Claim) -> Option<Slot> {
    let lost = state.volume(claim.volume.id)?.tracking_lost()?;
    let unseen = claim.looked.is_none_or(|looked| lost > looked) && !mutation::on("a claim overtakes a loss");
    unseen.then_some(lost)
}
