//! From a connection to volumes that may send: greeting, position rule, claim, resume (§4.5, T1, T3, T7, T11, T17).

use std::collections::BTreeMap;

use farside_ledger::{Claim, VoidReason};
use farside_region::{
    DigestKey, Generation, Geometry, LedgerPosition, RegionRange, RegionSet, Seal, SealMode, Seq, Slot, Term, VolumeId, mutation,
};
use farside_wire::{
    ClaimOutcome, ClaimRequest, ClaimVerdict, CurrentVolume, Features, HeldLayer, LayerFate, LedgerSlice, ReadLedger,
    ReceiverHello, RequestId, ResumeAnswer, ResumeQuery, Settings, SourceHello, SourceMessage, VersionRange,
};

use super::api::{Action, DemoteCause, Ended, Nanos, Problem, Report, SECOND};
use super::status::{PointStatus, RefusedWhy};
use super::verify::VerifyOutcome;
use super::volume::{Check, HeatFor, Layer, Looked, Loss, Reclaim, Seen, Service, Stage, Standing, Volume, slot_of};
use super::{KeyAnswer, Kind, Link, Source};

/// What keeps keys for the receiver may take its time, and no longer.
const KEY_WAIT: Nanos = 300 * SECOND;

impl Source {
    pub(super) fn connected(&mut self, connection: u64, out: &mut Vec<Action>) {
        self.link = Link::Greeting { connection };
        let hello = SourceHello {
            versions: VersionRange::OURS,
            features: Features::OURS,
            instance: self.config.instance,
            connection,
            source: self.config.source.clone(),
            group: self.config.group.clone(),
        };
        self.send(SourceMessage::Hello(hello), out);
    }

    /// The connection is gone: what was being read is read again, and a cut among it is no cut any more (T1). What was said
    /// may have been staged; the answer to the resume question tells.
    pub(super) fn disconnected(&mut self, now: Nanos, how: Ended, out: &mut Vec<Action>) {
        self.link = Link::Down;
        self.line.ends(how);
        (self.trouble, self.is_gateway_full) = (None, false);
        self.key_answer = KeyAnswer::NotAsked;
        for volume in self.volumes.values_mut() {
            volume.check = Check::Waiting { until: 0 };
            volume.reading = None;
            volume.claim_refused = None;
            volume.loss_unsaid();
            volume.compared_unsaid(now);
        }
        if mutation::on("a reset cut re-sent as a point") {
            return;
        }
        let cut_short: Vec<_> = self
            .epochs
            .iter()
            .filter(|(id, e)| e.kind == Kind::Cut && self.layers_of(**id).any(Layer::is_frozen))
            .map(|(&id, _)| id)
            .collect();
        for epoch in cut_short {
            self.demote(now, epoch, DemoteCause::Reset, out);
        }
    }

    pub(super) fn greeted(&mut self, now: Nanos, hello: &ReceiverHello, out: &mut Vec<Action>) {
        let Link::Greeting { connection } = self.link else {
            return self.protocol_error("a second greeting", out);
        };
        let ours = VersionRange::OURS;
        if !(ours.min..=ours.max).contains(&hello.version) {
            return self.protocol_error("a version that was not offered", out);
        }
        self.link = Link::Up { connection, since: now, granted: 0, spent: 0, granted_at: now };
        self.features = Features::OURS.common(hello.features);
        // Another process of the receiver, perhaps: what was said to the one before is forgotten.
        self.staged_unasked = true;
        for volume in self.volumes.values_mut() {
            volume.check = Check::Waiting { until: now };
        }
        if self.volumes.values().any(|volume| !self.features.has(volume.features())) {
            return self.no_sealing(out);
        }
        if self.features.has(Features::SEALED) {
            // † In the store before any claim that names the key: what nobody can unwrap must not be published.
            self.wrapped_keys.iter().for_each(|key| self.send(SourceMessage::WrappedKey(key.clone()), out));
        }
        if self.config.asks_for_key && self.features.has(Features::AT_REST) {
            self.key_answer = KeyAnswer::Awaited;
            self.send(SourceMessage::KeyWanted, out);
        }
        self.send_settings(out);
    }

    /// A receiver that knows nothing of encryption would take a claim for nonsense.
    pub(super) fn no_sealing(&self, out: &mut Vec<Action>) {
        if let Some(connection) = self.link.connection() {
            out.push(Action::Disconnect { connection, why: Problem::NoSealing });
        }
    }

    pub(super) fn send_settings(&self, out: &mut Vec<Action>) {
        if matches!(self.link, Link::Up { .. }) {
            self.send(self.settings(), out);
        }
    }

    /// What is to be kept. A receiver that knows no grid keeps everything for as long as its longest rule says.
    fn settings(&self) -> SourceMessage {
        let policy = &self.config.policy;
        if !self.config.policy_is_said && self.features.has(Features::DEFAULTS) {
            return SourceMessage::DefaultRetention(policy.clone());
        }
        if self.features.has(Features::GRID) {
            return SourceMessage::Retention(policy.clone());
        }
        let span_ms =
            policy.grid.rules().iter().map(|rule| rule.keep_ms.saturating_add(rule.every_ms)).fold(policy.span_ms, u64::max);
        SourceMessage::Settings(Settings { keep: policy.keep, span_ms })
    }

    /// The receiver gave a key for the group, or said that it wants none.
    pub(super) fn key_answered(&mut self, seals: &BTreeMap<VolumeId, Seal>) {
        if self.key_answer == KeyAnswer::NotAsked {
            return; // whoever has a key of his own takes none
        }
        self.key_answer = KeyAnswer::Here;
        self.volumes.iter_mut().for_each(|(id, volume)| volume.offered = seals.get(id).copied());
    }

    /// Asks the position rule's question for every volume whose time has come.
    pub(super) fn begin_checks(&mut self, now: Nanos, out: &mut Vec<Action>) {
        // † A volume that is claimed before it is known whether it is to be encrypted is in clear for ever.
        let is_key_awaited = self.key_answer == KeyAnswer::Awaited && !mutation::on("a claim before the answer about the key");
        let Link::Up { connection, since, .. } = self.link else { return };
        if is_key_awaited {
            // Whatever became of the answer there: over another connection it is asked for anew.
            if now.saturating_sub(since) >= KEY_WAIT {
                out.push(Action::Disconnect { connection, why: Problem::NoKeyAnswer });
            }
            return;
        }
        let due: Vec<_> = self
            .volumes
            .values()
            .filter(|v| matches!(v.check, Check::Waiting { until } if until <= now))
            .filter(|v| v.service != Service::Leaving)
            // Once on each connection: the newer store may be back.
            .filter(|v| !matches!(v.standing, Standing::Refused(why) if why != RefusedWhy::TargetRewound))
            .filter(|v| !v.heat.0.iter().any(|why| matches!(why, HeatFor::Accept | HeatFor::Recorded(_))))
            .filter(|v| self.features.has(v.features()))
            .filter(|v| !self.is_switching(v.id()) || mutation::on("hole: a claim beside a switch"))
            .map(|v| v.id())
            .collect();
        for id in due {
            self.look(id, Seen::default(), out);
        }
    }

    fn look(&mut self, id: VolumeId, seen: Seen, out: &mut Vec<Action>) {
        let request = self.next_request();
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        let question = ReadLedger { id: request, volume: id, position: volume.published, after: seen.after };
        volume.check = Check::Looking { id: request, seen };
        self.send(SourceMessage::ReadLedger(question), out);
    }

    pub(super) fn ledger_slice(&mut self, now: Nanos, slice: LedgerSlice, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&slice.volume) else { return };
        let Check::Looking { id, seen } = &mut volume.check else { return };
        if *id != slice.id {
            return;
        }
        let mut seen = std::mem::take(seen);
        let has_layers = slice.current.as_ref().is_some_and(|c| c.has_layers);
        let last = slice.layers.iter().filter_map(|layer| layer.regions.last()).max();
        let is_beyond = |geometry: &Geometry| last.is_some_and(|region| region.0 >= geometry.region_count());
        // As large as the ledger has it: another host's disk may be larger than ours, and that is no nonsense of the receiver's.
        if is_beyond(slice.current.as_ref().map_or(&volume.meta.geometry, |current| &current.meta.geometry)) {
            return self.protocol_error("a ledger slice with regions beyond the volume", out);
        }
        let has_shrunk = is_beyond(&volume.meta.geometry);
        // It has the copy that was promoted: what fences the source that was is what it publishes under. It took no part in that history, so
        // a person is asked all the same.
        let takes_up = self.config.stands_in && volume.is_new_here();
        // † Our own claim may have been taken, and its verdict lost with the connection: that is nobody else's promotion. Nor is the one under the
        // term that this disk's header has, with the ledger from it on: whatever forgot its generation, a promotion would have made another term.
        let is_of_lost_verdict = |current: &CurrentVolume| {
            current.claimant == Some(self.config.instance)
                && volume.claims_as.is_some_and(|claimed| claimed == current.meta.generation)
                && !mutation::on("L6 a claim whose verdict was lost is another's promotion")
        };
        let is_of_header = |current: &CurrentVolume| {
            current.meta.generation > volume.meta.generation
                && slice.ancestor
                && volume.held.or(volume.header.confirmed) == Some(current.term)
                && slot_of(volume.published) > current.term.0
        };
        if let Some(current) = &slice.current {
            let has_term = is_of_header(current);
            if has_term || is_of_lost_verdict(current) {
                volume.adopt_generation(current.meta.generation);
                volume.save_generation(has_term, out);
            }
        }
        let newest = newest_of(&slice);
        let has_more = volume.takes_back_at.is_some_and(|at| newest != Some(at))
            && !mutation::on("L6 what was published since is taken back, too");
        // Before anything else: what a promoted copy published does not make a fork of this one.
        if let Some(promoted) = slice.current.as_ref().map(|current| current.meta.generation)
            && promoted > volume.meta.generation
            && !takes_up
            && (volume.outranks != Some(promoted) || has_more)
            && !(volume.outranks.is_some() && mutation::on("L6 a yes to one promotion holds for the next"))
        {
            (volume.fenced_by, volume.refused_at) = (Some(promoted), newest);
            (volume.outranks, volume.takes_back_at) = (None, None);
            return self.refuse(now, slice.volume, RefusedWhy::Fenced, out);
        }
        volume.refused_at = newest;
        if has_more {
            volume.takes_back_at = None;
            return self.refuse(now, slice.volume, RefusedWhy::Forked, out);
        }
        // No region beyond ours goes into a set of ours.
        if has_shrunk {
            return self.refuse(now, slice.volume, RefusedWhy::Shape, out);
        }
        let forced = volume.reclaim == Some(Reclaim::Accepted) || skips_position_rule(volume.held, volume.reclaim);
        if !forced {
            if let Some(why) = judge_position(volume, &slice, &mut seen, has_layers) {
                return self.refuse(now, slice.volume, why, out);
            }
            if slice.more {
                let Some(last) = slice.layers.last() else {
                    return self.protocol_error("an empty page of a ledger slice", out);
                };
                seen.after = Some(last.slot);
                return self.look(slice.volume, seen, out);
            }
        }
        if volume.standing == Standing::Refused(RefusedWhy::TargetRewound) {
            // All that was seen published is there again. † What lay staged was given up with the refusal: nothing resumes its term.
            volume.standing = if volume.is_in_doubt() { Standing::TrackingLost } else { Standing::Good };
            if volume.held.is_some() {
                volume.reclaim.get_or_insert(Reclaim::Term);
            }
        }
        if !forced
            && let Some(lost) = volume.unheeded_loss(&slice)
            && !mutation::on("a recorded loss of tracking is not heeded")
        {
            return self.heed_loss(now, slice.volume, lost, out);
        }
        let volume = self.volumes.get_mut(&slice.volume).expect("just seen");
        if volume.held.is_none() {
            volume.compare.union_with(&seen.regions);
        }
        if !has_layers {
            // Nothing to compare with: "absent" means unsynced.
            std::mem::take(&mut volume.compare).ranges().for_each(|r| volume.resend.insert_whole(r));
        }
        // What the ledger does not hold is not protected, whatever was seen before (a store can be rolled back).
        let newest = slice.current.as_ref().and_then(|c| c.newest_point);
        volume.newest_point = newest.map(|p| PointStatus { position: p.position, epoch: p.epoch });
        volume.quiet = None;
        volume.point_due =
            slice.current.as_ref().is_some_and(|c| c.point_due) && !mutation::on("hole: no point after the last pass");
        let refused = match &slice.current {
            Some(current) => self.adopt(slice.volume, current, out),
            None => self.adopt_key(slice.volume, None, out),
        };
        if let Some(why) = refused {
            return self.refuse(now, slice.volume, why, out);
        }
        self.claim_or_resume(slice.volume, Looked(slice.head.map(|h| h.slot)), out);
    }

    /// Takes over what the ledger knows about the volume, or says why it cannot be this one.
    fn adopt(&mut self, id: VolumeId, current: &CurrentVolume, out: &mut Vec<Action>) -> Option<RefusedWhy> {
        let volume = self.volumes.get_mut(&id)?;
        volume.ever_published |= current.has_layers;
        let (ours, theirs) = (volume.geometry(), current.meta.geometry);
        let same_shape = ours.granule_bytes() == theirs.granule_bytes() && ours.region_bytes() == theirs.region_bytes();
        if !same_shape || ours.volume_bytes() < theirs.volume_bytes() {
            return Some(RefusedWhy::Shape);
        }
        if let Some(why) = self.adopt_key(id, Some(&current.meta.digest_key), out) {
            return Some(why);
        }
        let volume = self.volumes.get_mut(&id)?;
        // A person took the history back: that is a promotion as well, and fences whoever was promoted before.
        volume.claims_as = None;
        if current.meta.generation > volume.meta.generation {
            // † A stand-in that had published before, and was asked about the next promotion, takes that one up, too: only the source takes a history back.
            let is_asked_about = volume.outranks == Some(current.meta.generation);
            let takes_up = self.config.stands_in
                && (volume.is_new_here() || is_asked_about)
                && !mutation::on("L6 a stand-in fences the promotion");
            let next = if takes_up || mutation::on("L6 who takes a history back fences nobody") { 0 } else { 1 };
            volume.claims_as = Some(Generation(current.meta.generation.0.saturating_add(next)));
        }
        if volume.held.is_some_and(|held| held != current.term) {
            volume.reclaim.get_or_insert(Reclaim::Term);
            let theirs = current.claimant.is_some_and(|c| c != self.config.instance);
            if theirs && volume.counted_turn.replace(current.term) != Some(current.term) {
                volume.turns += 1;
            }
            if volume.turns > self.config.limits.claim_turns_max {
                return Some(RefusedWhy::Forked);
            }
        }
        None
    }

    /// Settles what the volume is encrypted with, or says why that cannot be. `theirs`: as the ledger has it; `None`: nobody claimed the volume there.
    fn adopt_key(&mut self, id: VolumeId, theirs: Option<&DigestKey>, out: &mut Vec<Action>) -> Option<RefusedWhy> {
        let volume = self.volumes.get_mut(&id)?;
        let (ours, offered) = (volume.meta.digest_key, volume.offered.map(DigestKey::Sealed));
        let is_at_rest = |key: &DigestKey| key.seal().is_some_and(|seal| seal.mode == SealMode::AtRest);
        let is_ours_only = ours.seal().is_some() && !is_at_rest(&ours);
        let wanted = match theirs {
            Some(theirs) => *theirs,
            // It begins as the gateway wants it. What is claimed already, as far as this host knows, says so itself.
            None if !is_ours_only && (volume.held.is_none() || volume.reclaim.is_some()) => offered.unwrap_or(ours),
            None => ours,
        };
        // † Never in clear what is to be encrypted, never under a key that who restores does not expect. A seal is taken over only with the key that
        // the gateway gave for it.
        let is_mixed = wanted != ours
            && match (ours.seal(), wanted.seal()) {
                (None, None) => false,
                (None, Some(_)) => offered != Some(wanted),
                (Some(_), _) => theirs.is_some(),
            };
        let has_no_key = is_at_rest(&wanted) && offered != Some(wanted);
        if (is_mixed || has_no_key) && !mutation::on("an encrypted volume adopts what the ledger says") {
            return Some(RefusedWhy::Key);
        }
        if wanted != ours {
            volume.meta.digest_key = wanted;
            out.push(Action::AdoptMeta { meta: Box::new(volume.meta.clone()) });
        }
        None
    }

    fn claim_or_resume(&mut self, id: VolumeId, looked: Looked, out: &mut Vec<Action>) {
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        match (volume.held, volume.reclaim) {
            (Some(_), Some(Reclaim::Lost)) => {
                volume.check = Check::Listing { looked };
                out.push(Action::KeepHot { volume: id });
            }
            (None, _) | (_, Some(_)) => self.claim(id, looked, out),
            (Some(term), None) => {
                let layers = volume.layers.iter().map(|l| HeldLayer { seq: l.key.seq, parts: l.parts() }).collect();
                let request = self.next_request();
                self.volumes.get_mut(&id).expect("just seen").check = Check::Resuming { id: request };
                self.send(SourceMessage::Resume(ResumeQuery { id: request, volume: id, term, layers }), out);
            }
        }
    }

    fn claim(&mut self, id: VolumeId, looked: Looked, out: &mut Vec<Action>) {
        let request = self.next_request();
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        volume.check = Check::Claiming { id: request };
        let mut meta = volume.meta.clone();
        meta.generation = volume.claims_as.unwrap_or(meta.generation);
        let claim = Claim { volume: meta, looked: looked.0, source: self.config.source.clone() };
        self.send(SourceMessage::Claim(ClaimRequest { id: request, claim }), out);
    }

    pub(super) fn hot_regions(&mut self, id: VolumeId, regions: &RegionSet, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if let Check::Listing { looked } = volume.check {
            volume.compare.union_with(regions);
            self.claim(id, looked, out);
        }
    }

    pub(super) fn claim_verdict(&mut self, now: Nanos, verdict: &ClaimVerdict, out: &mut Vec<Action>) {
        let id = verdict.volume;
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.check != (Check::Claiming { id: verdict.id }) {
            return;
        }
        let position = match verdict.outcome {
            ClaimOutcome::Accepted { position } => position,
            ClaimOutcome::Void { reason: VoidReason::Fenced { current } } => {
                (volume.fenced_by, volume.claims_as) = (Some(current), None);
                return self.refuse(now, id, RefusedWhy::Fenced, out);
            }
            ClaimOutcome::Void { reason: VoidReason::ClaimShape(_) | VoidReason::ClaimShrinks { .. } } => {
                return self.refuse(now, id, RefusedWhy::Shape, out);
            }
            ClaimOutcome::Void { reason: VoidReason::ClaimOvertaken { .. } | VoidReason::ClaimDigestKey } => {
                volume.check = Check::Waiting { until: now };
                return;
            }
            ClaimOutcome::Void { .. } => {
                volume.check = Check::Waiting { until: now + self.config.limits.recheck };
                return;
            }
        };
        self.orphan(now, id, out);
        let volume = self.volumes.get_mut(&id).expect("just seen");
        let term = Term(position.slot.0);
        if let Some(generation) = volume.claims_as.take() {
            volume.adopt_generation(generation);
            volume.save_generation(mutation::on("L6 a generation is kept before its term"), out);
        }
        volume.held = Some(term);
        (volume.reclaim, volume.claim_refused) = (None, None);
        (volume.outranks, volume.takes_back_at) = (None, None);
        volume.loss_unsaid();
        (volume.last_seq, volume.known_seq) = (Seq(0), Seq(0));
        volume.published = Some(position);
        volume.cooling = None;
        volume.check = if mutation::on("the term is used before it is durable") { Check::Checked } else { Check::Confirming };
        self.write_header(now, id, out);
        out.push(Action::Report { volume: Some(id), what: Report::Claimed { term } });
    }

    /// The term is durable: the first layer may be sent (§4.5, rule 4).
    pub(super) fn confirmed(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.check == Check::Confirming && volume.held.is_some() && volume.header.confirmed == volume.held {
            volume.check = Check::Checked;
        }
    }

    pub(super) fn resume_answer(&mut self, now: Nanos, answer: &ResumeAnswer, out: &mut Vec<Action>) {
        let id = answer.volume;
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.check != (Check::Resuming { id: answer.id }) {
            return;
        }
        if answer.term != volume.held {
            return self.claim_anew(now, id, Reclaim::Term);
        }
        if answer.last_seq < volume.known_seq {
            return self.claim_anew(now, id, Reclaim::Lost);
        }
        if is_ahead(volume, answer.term, answer.last_seq) && !skips_position_rule(volume.held, volume.reclaim) {
            return self.refuse(now, id, RefusedWhy::Forked, out);
        }
        if !self.take_fates(now, answer, out) {
            return self.claim_anew(now, id, Reclaim::Lost);
        }
        let volume = self.volumes.get_mut(&id).expect("just seen");
        volume.check = Check::Confirming;
        self.confirmed(id);
        let waits = self.volumes.get(&id).is_some_and(|v| v.check == Check::Confirming);
        if waits {
            self.write_header(now, id, out);
        }
    }

    /// What became of each layer; false when staged data is gone (T5), or what was published is not what is here.
    fn take_fates(&mut self, now: Nanos, answer: &ResumeAnswer, out: &mut Vec<Action>) -> bool {
        let id = answer.volume;
        let mut reread = false;
        for resumed in &answer.layers {
            let volume = self.volumes.get_mut(&id).expect("the caller found it");
            let Some(layer) = volume.layers.iter_mut().find(|l| l.key.seq == resumed.seq) else { continue };
            let (key, epoch, layer_is_unread) = (layer.key, layer.epoch, layer.stage == Stage::Reading);
            let parts = if let LayerFate::Landing { parts, .. } = resumed.fate { parts } else { layer.parts() };
            if let Some(bytes) = layer.arrived(parts) {
                self.line.brought(key, bytes);
            }
            match &resumed.fate {
                // † Said to its end by somebody else, then, or before all of it was lost and read again: with other content, perhaps.
                LayerFate::Published { .. } | LayerFate::Landing { staged: true, .. } if layer_is_unread => return false,
                LayerFate::Published { position, kind } => self.published_layer(now, key, *position, *kind, out),
                LayerFate::Landing { parts, end, staged } => {
                    let whole = layer.stage != Stage::Reading && *parts >= layer.parts();
                    if layer.stage == Stage::Staged && *parts < layer.parts() && !mutation::on(LOST_RESENT) {
                        return false;
                    }
                    // † A member's layer left the cut because it was seen published. This one is not, so that record is gone
                    // from the store; what is left of the epoch is no cut of all its members.
                    if self.is_split_cut(epoch) && !mutation::on("T11 a point is said again by half of its members") {
                        self.demote_anyway(now, epoch, DemoteCause::Claim, out);
                    }
                    if whole && (!reread || mutation::on("T1 later ones keep the cut")) {
                        let said = end.as_ref().is_some_and(|end| self.is_as_said(key, end));
                        let layer = self.layer_mut(&key).expect("just seen");
                        if layer.stage != Stage::Read {
                            layer.stage = match (said, staged) {
                                (true, true) => Stage::Staged,
                                (true, false) => Stage::Sent,
                                (false, _) => Stage::Read,
                            };
                        }
                        continue;
                    }
                    if !whole {
                        reread = true;
                        self.read_again(key, *parts, out);
                    } else if let Some(layer) = self.layer_mut(&key) {
                        layer.stage = Stage::Read;
                    }
                    if !mutation::on("a reset cut re-sent as a point") {
                        self.demote(now, epoch, DemoteCause::Reset, out);
                        self.demote_later(now, id, epoch, out);
                    }
                }
            }
        }
        true
    }

    /// Whether some members of a cut have no layer of it any more. (Of a pass, layers are published one by one.)
    fn is_split_cut(&self, epoch: farside_region::EpochId) -> bool {
        let Some(known) = self.epochs.get(&epoch).filter(|e| e.kind == Kind::Cut) else { return false };
        let here: std::collections::BTreeSet<_> = self.layers_of(epoch).map(|l| l.key.volume).collect();
        known.members.iter().any(|member| !here.contains(member))
    }

    /// Whether the receiver knows the layer under the kind and members that it has now (T10).
    fn is_as_said(&self, key: farside_region::LayerKey, end: &farside_wire::SaidEnd) -> bool {
        let Some(layer) = self.layer(&key) else { return false };
        let Some(epoch) = self.epochs.get(&layer.epoch) else { return false };
        match epoch.kind {
            Kind::Pass | Kind::Demoted => end.kind == farside_ledger::LayerKind::Fuzzy,
            Kind::Cut => {
                let mut members: Vec<_> = self.layers_of(layer.epoch).map(|l| l.key).collect();
                members.sort_unstable();
                end.kind == farside_ledger::LayerKind::Point && end.members == members
            }
        }
    }

    fn read_again(&mut self, key: farside_region::LayerKey, keep: u32, out: &mut Vec<Action>) {
        let Some(layer) = self.layer_mut(&key) else { return };
        let lost = layer.truncate(keep);
        layer.stage = Stage::Reading;
        if lost {
            out.push(Action::Report { volume: Some(key.volume), what: Report::ReadAgain { key, from_part: keep } });
        }
    }

    /// Later cuts lie on top of what is read again from a disk that has moved on: they are no cuts any more (T1).
    fn demote_later(&mut self, now: Nanos, id: VolumeId, epoch: farside_region::EpochId, out: &mut Vec<Action>) {
        if mutation::on("T1 later ones keep the cut") {
            return;
        }
        let later: Vec<_> =
            self.epochs.range(epoch..).filter(|(_, e)| e.members.contains(&id)).map(|(&later, _)| later).collect();
        for later in later {
            self.demote(now, later, DemoteCause::Reset, out);
        }
    }

    /// The volume needs a new claim; everything about its position is asked again first (T7).
    pub(super) fn claim_anew(&mut self, now: Nanos, id: VolumeId, why: Reclaim) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.held.is_none() {
            return;
        }
        volume.reclaim = match (volume.reclaim, why) {
            (Some(Reclaim::Accepted), _) => Some(Reclaim::Accepted),
            (Some(Reclaim::Lost), Reclaim::Term) => Some(Reclaim::Lost),
            _ => Some(why),
        };
        if !matches!(volume.check, Check::Looking { .. } | Check::Listing { .. } | Check::Claiming { .. }) {
            volume.check = Check::Waiting { until: now };
        }
    }

    pub(super) fn refuse(&mut self, now: Nanos, id: VolumeId, why: RefusedWhy, out: &mut Vec<Action>) {
        self.orphan(now, id, out);
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        volume.standing = Standing::Refused(why);
        volume.claim_refused = None;
        volume.end_verify(now, VerifyOutcome::Refused);
        if matches!(why, RefusedWhy::Forked | RefusedWhy::TargetRewound) {
            // Whatever was seen published may not be there, or not be ours: nobody knows how old what is there is (L10).
            (volume.newest_point, volume.quiet) = (None, None);
        }
        // Until there is another connection, or a person's word.
        volume.check = Check::Waiting { until: Nanos::MAX };
        volume.cooling = None;
        let state = super::State::Refused(why);
        if why == RefusedWhy::TargetRewound && !mutation::on("L6 a rewound store is forgotten by a crash") {
            self.keep_refusal(now, id, out);
        }
        out.push(Action::Report { volume: Some(id), what: Report::State(state) });
    }

    /// The refusal must outlive a crash (L6): a header from before what was seen published would find itself in the older ledger
    /// and see nothing wrong. † Of a volume that lost track it may not move: without a term it is refused in that ledger, too (T17).
    fn keep_refusal(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let volume = self.volumes.get_mut(&id).expect("the caller found it");
        let (_, position) = volume.header.asked;
        if position == volume.published {
            return;
        }
        match volume.is_in_doubt() && volume.loss != Loss::Kept {
            true => volume.write_header(now, None, position, out),
            false => volume.write_header(now, volume.held.or(volume.header.confirmed), volume.published, out),
        }
    }

    /// The disk was brought to a point of the copy that was promoted, and takes the history back from that one: not if there is more.
    pub(super) fn take_back(&mut self, now: Nanos, id: VolumeId, at: LedgerPosition, out: &mut Vec<Action>) {
        self.accept(now, id, out);
        if let Some(volume) = self.volumes.get_mut(&id)
            && matches!(volume.standing, Standing::Refused(_))
        {
            volume.takes_back_at = Some(at);
        }
    }

    /// A person accepts the disk as it is: every bit first, then a claim without the position rule (T3).
    pub(super) fn accept(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let may =
            matches!(volume.standing, Standing::Refused(RefusedWhy::Forked | RefusedWhy::TargetRewound | RefusedWhy::Fenced));
        // † What was said of a refusal holds until there is an answer: said once more meanwhile, it is about nothing.
        if may || mutation::on("L6 a yes that comes late drops what the one before was about") {
            volume.takes_back_at = None;
        }
        if volume.standing == Standing::Refused(RefusedWhy::Fenced) {
            // That promotion and no later one: nobody was asked about it.
            volume.outranks = volume.fenced_by;
        }
        if may && mutation::on("T3 accept without every bit") {
            volume.heat.0.push(HeatFor::Accept);
            return self.all_hot(now, id, out);
        }
        if may && !volume.heat.0.contains(&HeatFor::Accept) {
            // What is being asked about a rewound store is answered by the person.
            volume.check = Check::Waiting { until: 0 };
            self.heat(now, id, HeatFor::Accept, out);
        }
    }

    /// What was said of a refusal holds no more. What was claimed by it stays claimed, and nobody can tell before the verdict.
    pub(super) fn withdraw(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        if volume.may_have_claimed() || mutation::on("L6 what was given up is taken back all the same") {
            return;
        }
        let is_promoted = volume.outranks.is_some();
        (volume.outranks, volume.takes_back_at) = (None, None);
        volume.heat.0.retain(|why| *why != HeatFor::Accept);
        if volume.reclaim == Some(Reclaim::Accepted) {
            volume.reclaim = None;
            if volume.standing == Standing::Good {
                let why = if is_promoted { RefusedWhy::Fenced } else { RefusedWhy::Forked };
                self.refuse(now, id, why, out);
            }
        }
    }

    /// Whether the history of a volume was taken back from that promotion, or may have been: a claim was said by a person's word, and there was no
    /// verdict yet.
    pub fn may_have_taken_back(&self, id: VolumeId, from: Generation) -> bool {
        self.volumes.get(&id).is_some_and(|volume| volume.meta.generation > from || volume.may_have_claimed())
    }

    /// Everything is going to be compared: every bit first.
    pub(super) fn heat(&mut self, now: Nanos, id: VolumeId, why: HeatFor, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        volume.end_verify(now, VerifyOutcome::Superseded);
        volume.heat.0.push(why);
        if volume.heat.0.len() == 1 {
            out.push(Action::HeatAll { volume: id });
        }
    }

    pub(super) fn all_hot(&mut self, now: Nanos, id: VolumeId, out: &mut Vec<Action>) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let reasons = std::mem::take(&mut volume.heat.0);
        if reasons.is_empty() {
            return;
        }
        let count = volume.geometry().region_count();
        volume.compare.insert_range(RegionRange { start: farside_region::RegionIndex(0), count });
        for why in reasons {
            match why {
                HeatFor::Resync => {}
                HeatFor::Recorded(slot) => {
                    volume.heeded = Some(slot);
                    if volume.standing == Standing::TrackingLost {
                        volume.standing = Standing::Good;
                    }
                    volume.check = Check::Waiting { until: now };
                }
                HeatFor::TrackingLost => {
                    volume.loss = Loss::Kept; // what it was about is over
                    if volume.standing == Standing::TrackingLost {
                        volume.standing = Standing::Good;
                    }
                    out.push(Action::WithdrawTrackingLost { volume: id });
                }
                HeatFor::Accept => {
                    volume.standing = Standing::Good;
                    volume.reclaim = Some(Reclaim::Accepted);
                    volume.turns = 0;
                    volume.check = Check::Waiting { until: now };
                }
            }
        }
        // What was held back.
        self.write_headers_behind(now, |volume| volume.id() == id, out);
    }

    pub(super) fn protocol_error(&mut self, what: &'static str, out: &mut Vec<Action>) {
        if let Some(connection) = self.link.connection() {
            out.push(Action::Disconnect { connection, why: Problem::Protocol(what) });
        }
    }

    pub(super) fn next_request(&mut self) -> RequestId {
        self.last_request.0 += 1;
        self.last_request
    }
}

const LOST_RESENT: &str = "T5 lost staged data re-sent under the same seq";

/// The newest point of the volume, as the ledger has it.
fn newest_of(slice: &LedgerSlice) -> Option<LedgerPosition> {
    slice.current.as_ref().and_then(|current| current.newest_point).map(|point| point.position)
}

fn skips_position_rule(held: Option<Term>, reclaim: Option<Reclaim>) -> bool {
    mutation::on("skip the position rule")
        || (mutation::on("T7 position not checked at reconnect") && held.is_some() && reclaim.is_none())
}

/// Whether the ledger has layers under the term that is held which nobody here gave a number. † Only this process ever did: another copy of it
/// published, and this one is a machine that was reverted, or cloned, with its memory.
fn is_ahead(volume: &Volume, term: Option<Term>, last_seq: Seq) -> bool {
    volume.held.is_some() && volume.held == term && last_seq > volume.last_seq
}

/// The position rule on one page. Layers known published by the time of the answer are no news.
fn judge_position(volume: &Volume, slice: &LedgerSlice, seen: &mut Seen, has_layers: bool) -> Option<RefusedWhy> {
    if !slice.ancestor {
        return Some(RefusedWhy::TargetRewound);
    }
    if slice.current.as_ref().is_some_and(|current| is_ahead(volume, Some(current.term), current.last_seq)) {
        return Some(RefusedWhy::Forked);
    }
    let confirmed = volume.held.or(volume.header.confirmed);
    if confirmed.is_none() && has_layers && !mutation::on("T17 no header, layers there: not refused") {
        return Some(RefusedWhy::Forked);
    }
    let news = |slot: Slot| slot.0 >= slot_of(volume.published) || mutation::on("hole: the position check races with cooling");
    for layer in slice.layers.iter().filter(|l| news(l.slot)) {
        let known = match volume.held {
            // What bits that are live now would say: the host may have written anywhere since.
            None if mutation::on("hole: position judged by live bits") => true,
            None => layer.regions.ranges().all(|r| r.iter().all(|r| volume.inherited.contains(r))),
            Some(_) => layer.regions.iter().all(|r| volume.mentions(r)),
        };
        seen.foreign |= Some(layer.term) != confirmed;
        if confirmed.is_some() && (seen.foreign || !known) {
            return Some(RefusedWhy::Forked);
        }
        seen.regions.union_with(&layer.regions);
    }
    None
}
