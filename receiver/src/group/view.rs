//! How the group is, for whoever asks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use farside_region::VolumeId;
use farside_replication::target::SessionId;

use super::{Group, Here, Place};
use crate::found::{Found, Lost};
use crate::status::{Ages, GroupView, Lag, Seen, since_published};

/// How often it is looked which bytes are dead, and whether points are of cohorts that are no more.
const DEAD_AGAIN: Duration = Duration::from_secs(30);

impl Group {
    /// How old the group is at most: its oldest volume. `None` if a volume has no point.
    /// A volume that left the group does not count: it is not in the newest point, and nothing came of it since. It is named.
    fn lag(&self, here: &Here) -> Option<Lag> {
        let state = here.store.state();
        let age = |id: VolumeId| {
            let point = state.newest_point_of(id)?;
            let seen = self.cut_seen.get(&id).map(|cut| Lag { age: cut.elapsed(), is_at_least: false });
            // A heartbeat says that nothing changed since.
            let quiet = here.target.quiet(state, id).map(|(_, arrived)| Duration::from_nanos(self.now().saturating_sub(arrived)));
            let quiet = quiet.map(|age| Lag { age, is_at_least: false });
            let known = [seen, quiet].into_iter().flatten().min();
            Some(known.unwrap_or_else(|| Lag { age: since_published(point), is_at_least: true }))
        };
        let newest = state.points().values().next_back();
        let is_anybody_here = state.volumes().any(|(id, _)| here.target.is_held(state, id));
        let counts = |id: VolumeId| {
            let in_newest = newest.is_some_and(|p| p.members.iter().any(|m| m.key.volume == id));
            let layer = state.volume(id).and_then(|v| v.last_layer().filter(|l| l.key.term == v.term()));
            let layer_since = layer.is_some_and(|l| newest.is_none_or(|p| l.slot > p.slot));
            let term = state.volume(id).map(|v| v.term());
            // Nobody says of one that is removed that its layer will not come; but it is not claimed on the next connection. † A host that is gone
            // claims nothing, and each of its volumes counts as it did.
            let begun = (!is_anybody_here || here.target.is_held(state, id))
                && self.beginnings.keys().any(|key| key.volume == id && Some(key.term) == term);
            in_newest || layer_since || begun || here.target.quiet(state, id).is_some()
        };
        let ages: Option<Vec<Lag>> = state.volumes().filter(|(id, _)| counts(*id)).map(|(id, _)| age(id)).collect();
        ages?.into_iter().max()
    }

    /// How old what it has is, published and staged. A staged point is as old as its oldest member: since its layers were announced.
    fn ages(&self, here: &Here) -> Ages {
        let since = |at: u64| Duration::from_nanos(self.now().saturating_sub(at));
        let newest = here.target.newest_staged_point().and_then(|members| {
            let begun: Option<Vec<Instant>> = members.iter().map(|key| self.beginnings.get(key).copied()).collect();
            begun?.into_iter().min().map(|begun| begun.elapsed())
        });
        Ages { lag: self.lag(here), staged: newest, unpublished: here.target.staged_since().map(since) }
    }

    /// What readings found, as far as the ledger has not outlived it.
    pub(super) fn found(&self) -> Arc<Found> {
        let schedule = &self.receiver.schedule;
        match &self.place {
            // One that is torn may hide anything.
            Place::Here(here) if here.store.torn().is_none() => schedule.change_found(&self.names, |found| {
                let state = here.store.state();
                found.lost(state, here.store.damaged_since().map(|since| Lost { since, parts: here.store.damaged_parts() }));
                found.settle(state);
                // † What a verification has just found is in there before the store hears of it: only what the ledger has given up goes, and
                // what was read and is sound (`Mail::Sound`).
                let spoiled = here.store.spoiled();
                found.spoiled.retain(|part| spoiled.contains(part) || !here.store.is_past(part));
                found.spoiled.extend(spoiled);
            }),
            Place::Here(_) | Place::Away { .. } => schedule.found(&self.names),
        }
    }

    /// Puts up how the group is now.
    pub(super) fn show(&mut self) {
        if let Place::Here(here) = &self.place {
            // They walk all points, and all parts.
            let is_due = self.dead_seen.is_none_or(|seen| seen.elapsed() >= DEAD_AGAIN);
            let changes = self.receiver.cohorts.changes();
            if is_due || self.cohorts_seen != changes {
                self.cohorts_seen = changes;
                let (config, state) = (self.receiver.config(), here.store.state());
                self.not_configured = self.receiver.cohorts.not_configured_reason(&config, &self.names, state);
            }
            if is_due {
                self.dead_bytes = here.store.dead_bytes();
                self.dead_seen = Some(Instant::now());
            }
        }
        let found = self.found();
        let mut view = GroupView::new(&self.names);
        view.hosts = self.view.load().hosts.iter().map(|(host, seen)| (host.clone(), seen.gone())).collect();
        let mut sessions: Vec<_> = self.sessions.values().collect();
        sessions.sort_by_key(|session| session.heard());
        view.hosts.extend(sessions.into_iter().map(|session| (session.peer(), Seen::of(session))));
        if let Place::Here(here) = &self.place {
            let state = here.store.state();
            let free = state.volumes().map(|(id, _)| id).filter(|id| !here.target.is_held(state, *id));
            let free = free.collect();
            let stands = |session: &SessionId| self.sessions.contains_key(session);
            self.unclaimed.look(free, stands, !self.sessions.is_empty(), Instant::now());
        }
        match &self.place {
            Place::Away { words, .. } => view.away(words),
            Place::Here(here) => {
                let ages = self.ages(here);
                view.here(
                    &here.store,
                    &found,
                    self.receiver.vault.path(),
                    &here.target,
                    here.waits,
                    ages,
                    self.dead_bytes,
                    self.tally,
                );
                view.unclaimed(here.store.state(), &self.unclaimed);
                view.merging(&self.merging);
                view.reason(self.not_configured.clone());
                if let Some(why) = self.at_rest.trouble() {
                    view.key_is_not_kept(why);
                }
                if self.policy_is_unsaid {
                    view.retention_is_unsaid();
                }
                if let Some((_, why, _)) = &self.policy_unkept {
                    view.reason(Some(why.clone()));
                }
            }
        }
        self.view.store(Arc::new(view));
    }
}
