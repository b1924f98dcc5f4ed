//! Merges, as far as the group's thread is concerned: what to look at next, and the records of what was written.

use std::time::Instant;

use farside_ledger::{Body, Map, Verdict, VolumeMeta};
use farside_objects::Location;
use farside_region::LayerKey;
use farside_replication::target::AppendOutcome;
use farside_store::{MergeLook, MergeTried, SpoiledLook};
use tokio::sync::oneshot;

use super::{Group, Place};
use crate::keys;

/// A merge takes so much of a disk before it gives anything back.
const ROOM_BYTES: u64 = 192 << 20;

/// What there is to do.
#[derive(Debug)]
pub(crate) enum MergeNext {
    /// This.
    Look(Box<MergeLook>),
    /// First of all whether parts that are known to be damaged are sound again.
    Spoiled(SpoiledLook),
    /// Ask again: something else was to be put first.
    Again,
    /// Nothing for a while.
    Nothing,
}

/// A record about merges, on its way into the ledger.
pub(super) enum Submitted {
    Map { key: LayerKey, written_bytes: u64, freed_bytes: u64, reply: oneshot::Sender<bool> },
    Decree { reply: oneshot::Sender<MergeNext> },
}

/// What came of merging in this group, for people.
#[derive(Clone, Debug, Default)]
pub(crate) struct MergeStanding {
    /// When parts were merged last.
    pub(crate) last: Option<Instant>,
    /// Why nothing is merged, where that is not because nothing is worth it.
    pub(crate) why_not: Option<String>,
    /// The last time that it was asked, nothing was looked at because the next prune takes some by itself.
    pub(super) put_off: bool,
}

impl Group {
    /// What to look at next.
    pub(super) fn merge_next(&mut self, reply: oneshot::Sender<MergeNext>) {
        // What merges and decrees cost, publication would owe.
        if matches!(&self.place, Place::Here(here) if here.spent) {
            self.merging.why_not = Some("the requests that `publish_budget` allows are used up".to_owned());
            let _ = reply.send(MergeNext::Nothing);
            return;
        }
        // First of all, and where there is no room, too: it is what gives room back.
        if let Place::Here(here) = &mut self.place
            && let Some(decree) = here.store.decree_plan()
        {
            self.submit(decree);
            self.merges.insert(self.submitted, Submitted::Decree { reply });
            return;
        }
        // Also where nothing is merged: what was merged before keeps what it replaced meanwhile.
        if let Place::Here(here) = &self.place
            && let Some(look) = here.store.spoiled_look()
        {
            self.merging.why_not = self.why_no_merge();
            let _ = reply.send(MergeNext::Spoiled(look));
            return;
        }
        let config = self.receiver.config();
        if config.merge.every_for(&config.store).is_none() {
            self.merging.why_not = None;
            let _ = reply.send(MergeNext::Nothing);
            return;
        }
        self.merging.why_not = self.why_no_merge();
        if self.merging.why_not.is_some() {
            let _ = reply.send(MergeNext::Nothing);
            return;
        }
        let floor = |policy| self.receiver.floor.over(&self.receiver.config(), policy);
        let Some(policy) = self.policy.as_ref().and_then(floor) else {
            let _ = reply.send(MergeNext::Nothing);
            return;
        };
        let kept = self.kept_points(&config);
        let forgotten = self.receiver.cohorts.forgotten(&config);
        let Place::Here(here) = &mut self.place else { return };
        let lacks_key =
            |volume: &VolumeMeta| volume.digest_key.seal().is_some_and(|seal| !keys::is_given(&config, &self.names, seal.mode));
        let has_key = !here.store.state().volumes().any(|(_, volume)| lacks_key(volume.meta()));
        // What the next prune takes by itself is not worth writing anything for. † Not twice in a row: with a long interval of retention there is always
        // something to prune, and nothing would ever be merged.
        let put_off = std::mem::take(&mut self.merging.put_off);
        let prune = if put_off || here.store.has_merge_queue() {
            None
        } else {
            here.store.prune_plan_keeping(&policy, &kept, &forgotten)
        };
        let next = match prune {
            Some(_) => {
                (self.prune.due, self.merging.put_off) = (true, true);
                MergeNext::Nothing
            }
            None => here.store.merge_look(&policy, has_key).map_or(MergeNext::Nothing, |look| MergeNext::Look(Box::new(look))),
        };
        let _ = reply.send(next);
    }

    fn why_no_merge(&self) -> Option<String> {
        let here = match &self.place {
            Place::Here(here) => here,
            Place::Away { words, .. } => return Some(words.clone()),
        };
        if let Some(why) = here.store.why_not_merged() {
            return Some(why);
        }
        if self.policy.is_none() {
            return Some("its source has not said yet what is to be kept".to_owned());
        }
        if !self.knows_its_cohorts(&self.receiver.config(), here) {
            return Some("it is not known yet which points are kept for cuts of its cohort".to_owned());
        }
        let is_dir = matches!(self.receiver.config().store, Location::Dir(_));
        match here.store.space() {
            Ok(space) if is_dir && space.grantable() < ROOM_BYTES => Some("the store's disk has no room for it".to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// A merge was written, or not: its record is put if it may be one still, also where requests are used up by now: what was written would
    /// cost as many to be taken away.
    pub(super) fn merged(&mut self, tried: MergeTried, reply: oneshot::Sender<bool>) {
        let verifying = self.why_no_merge().is_some();
        let Place::Here(here) = &mut self.place else { return };
        let (written_bytes, freed_bytes) =
            tried.written.as_ref().map_or((0, 0), |written| (written.written_bytes, written.freed_bytes));
        let key = tried.key;
        self.tally.merge_written_bytes += written_bytes;
        if verifying {
            here.store.merge_ended(key);
            let _ = reply.send(false);
            return;
        }
        match here.store.merge_written(tried) {
            Some(body) => {
                self.submit(body);
                self.merges.insert(self.submitted, Submitted::Map { key, written_bytes, freed_bytes, reply });
            }
            None => drop(reply.send(false)),
        }
    }

    /// Whether that was a record about merges, which has its verdict now.
    pub(super) fn merge_submitted(&mut self, submission: u64, outcome: &AppendOutcome) -> bool {
        let Some(submitted) = self.merges.remove(&submission) else { return false };
        let accepted =
            matches!(outcome, AppendOutcome::Judged { records } if records.iter().all(|(_, v)| *v == Verdict::Accepted));
        match submitted {
            Submitted::Map { key, written_bytes, freed_bytes, reply } => {
                if let Place::Here(here) = &mut self.place {
                    here.store.merge_ended(key);
                }
                if accepted {
                    self.tally.merges += 1;
                    self.tally.merge_freed_bytes += freed_bytes.saturating_sub(written_bytes);
                    self.merging.last = Some(Instant::now());
                    tracing::info!(group = %self.names, freed_bytes, written_bytes, "parts were merged");
                } else {
                    tracing::info!(group = %self.names, ?outcome, "a merge came to nothing");
                }
                // † One look may find many, and publication would owe for each.
                let may_go_on = matches!(&self.place, Place::Here(here) if !here.spent);
                let _ = reply.send(accepted && may_go_on);
            }
            Submitted::Decree { reply } => {
                let _ = reply.send(if accepted { MergeNext::Again } else { MergeNext::Nothing });
            }
        }
        true
    }
}

/// What a merge takes of the disk.
pub(super) fn drawn_bytes(body: &Body) -> u64 {
    match body {
        Body::Map(Map { new, regions, .. }) => {
            4096 + 12 * regions.range_count() as u64 + new.iter().map(|part| part.bytes).sum::<u64>()
        }
        _ => 4096,
    }
}
