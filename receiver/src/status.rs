//! What is shown of the receiver, its groups and its points: the API's types made of ours.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use farside_control::receiver::{ReceiverCounters, ReceiverGroup, ReceiverStatus, ReceiverVolume, StoreStatus};
use farside_control::source::LastPoint;
use farside_control::{
    Address, Code, Consistency, Point, PointCut, PointId, PointMember, PointPin, PointVerified, Reason, Severity, VerifiedHow,
};
use farside_ledger::{Proof, State, group_id};
use farside_objects::Location;
use farside_region::{Generation, Name, VolumeId};
use farside_replication::target::{self, Target};
use farside_store::{GroupNames, GroupStore, PointInfo, Torn};
use jiff::Timestamp;

pub(crate) use self::hosts::Seen;
use crate::found::Found;
use crate::group::{KeyTrouble, MergeStanding, Unclaimed};
use crate::process::Receiver;
use crate::schedule::Standing;

mod hosts;

/// How long a reader may hold off deletions before it is worth a word.
const WAITS_LONG: Duration = Duration::from_secs(60);

/// How old what a restore would bring back is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lag {
    pub(crate) age: Duration,
    /// It may be older: see [`ReceiverGroup::lag_is_at_least`].
    pub(crate) is_at_least: bool,
}

/// How old what a group has is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ages {
    /// What is published.
    pub(crate) lag: Option<Lag>,
    /// The newest point that is staged and not published.
    pub(crate) staged: Option<Duration>,
    /// For how long the oldest layer that is staged waits.
    pub(crate) unpublished: Option<Duration>,
}

/// How a group was a moment ago.
#[derive(Clone, Debug)]
pub(crate) struct GroupView {
    pub(crate) names: GroupNames,
    /// Every host that spoke for it since this process began.
    pub(crate) hosts: BTreeMap<Name, Seen>,
    /// It was opened, and no volume was ever claimed in it.
    is_empty: bool,
    /// What a scheduled verification goes by; `None` while there is nothing to verify, or nothing can be put on record.
    pub(crate) standing: Option<Standing>,
    /// When this was made: lags in it are of that moment.
    made: Instant,
    group: ReceiverGroup,
}

impl GroupView {
    pub(crate) fn new(names: &GroupNames) -> Self {
        let id = group_id(&names.source, &names.group).to_string();
        let group = ReceiverGroup { name: names.group.to_string(), id, ..ReceiverGroup::default() };
        Self { names: names.clone(), hosts: BTreeMap::new(), is_empty: false, standing: None, made: Instant::now(), group }
    }

    /// The group cannot be used.
    pub(crate) fn away(&mut self, words: &str) {
        let reason = Reason::new(Severity::Error, Code::StoreFailed, words, "it goes on by itself when the store answers again");
        self.group.reasons.push(reason);
    }

    /// What others have to say of it.
    pub(crate) fn reason(&mut self, reason: Option<Reason>) {
        self.group.reasons.extend(reason);
    }

    /// Why records that are newer than what is seen of its ledger may be there, and what to do.
    pub(crate) fn torn(&self) -> Option<String> {
        let torn = self.group.reasons.iter().find(|reason| reason.code == Code::LedgerTorn.word())?;
        Some(format!("{}; {}", torn.message, torn.what_to_do))
    }

    /// Its source says that nobody has said what is to be kept, and nobody here knows.
    pub(crate) fn retention_is_unsaid(&mut self) {
        let message =
            format!("nobody has said how many points of {} are to be kept, and there are older ones: all are", self.names);
        let what = format!("on its host: farside group set {} --keep 10 --span 24h, or what you want", self.names.group);
        self.group.reasons.push(Reason::new(Severity::Warning, Code::RetentionUnsaid, message, what));
    }

    /// Somebody who is to keep the key that the group is encrypted with at rest does not, or nobody does.
    pub(crate) fn key_is_not_kept(&mut self, KeyTrouble { words, is_lost }: &KeyTrouble) {
        let what = "put it back, or set `[[at_rest]] keys` right; then farside reload: it is asked for again";
        let (severity, what) = match is_lost {
            true => (Severity::Error, format!("{what}. Do not restart the receiver before")),
            false => (Severity::Warning, what.to_owned()),
        };
        self.group.reasons.push(Reason::new(severity, Code::KeyMissing, words, what));
    }

    /// Volumes that whoever is connected does not publish. Those that are not in the newest point were said.
    pub(crate) fn unclaimed(&mut self, state: &State, unclaimed: &Unclaimed) {
        let name = |id: &VolumeId| state.volume(*id).map(|volume| volume.meta().name.to_string());
        let names = &self.names;
        let rewound = unclaimed.rewound().filter_map(|id| name(&id)).map(|volume| {
            let message = format!(
                "the store is older than what the host of volume {volume} saw published of {names}: it was rolled back, or a torn ledger was repaired"
            );
            let what = format!(
                "bring the newer store back; or, on the host, `farside volume resync {volume} --accept rewound` goes on from this one"
            );
            Reason::new(Severity::Error, Code::TargetRewound, message, what)
        });
        let newest = state.points().values().next_back();
        let is_in_newest = |id: &VolumeId| newest.is_none_or(|point| point.members.iter().any(|m| m.key.volume == *id));
        let late = unclaimed.late(Instant::now()).filter(is_in_newest).filter_map(|id| name(&id)).map(|volume| {
            let message = format!("nothing is published of volume {volume} of {names}, though a host is connected for it");
            let what =
                "see `farside status` on that host: it refuses to go on, waits for a person or a key there, or was removed";
            Reason::new(Severity::Warning, Code::VolumeNotInPoints, message, what)
        });
        self.group.reasons.extend(rewound.chain(late));
    }

    /// What came of merging its parts.
    pub(crate) fn merging(&mut self, merging: &MergeStanding) {
        self.group.merged_ms = merging.last.map(|last| millis(last.elapsed()));
        self.group.not_merged.clone_from(&merging.why_not);
    }

    /// The group is in use.
    pub(crate) fn here(
        &mut self,
        store: &GroupStore,
        found: &Found,
        store_path: &Path,
        target: &Target,
        budget_wait: Option<Duration>,
        ages: Ages,
        dead_bytes: u64,
        counters: ReceiverCounters,
    ) {
        let state = store.state();
        self.is_empty = state.volumes().next().is_none() && store.torn().is_none();
        self.standing = newest_is_known(store).then(|| Standing { read: state.last_proofs().read_back });
        let group = &mut self.group;
        group.head_slot = state.head().map(|slot| slot.0);
        group.points = state.points().len() as u64;
        let shown = |point: &farside_ledger::Point| {
            let digest = state.digest_at(point.slot)?;
            Some(LastPoint { id: PointId::new(point.slot.0, &digest.0), cut_wall: wall(point.epoch.wall_ms) })
        };
        let newest = state.points().values().next_back();
        group.last_point = newest.and_then(shown);
        group.last_verified = found.last_verified(state);
        group.lag_ms = ages.lag.map(|lag| millis(lag.age));
        group.lag_is_at_least = ages.lag.is_some_and(|lag| lag.is_at_least);
        group.staged_lag_ms = ages.staged.map(millis);
        group.unpublished_ms = ages.unpublished.map(millis);
        group.used_bytes = store.segment_bytes();
        group.dead_bytes = dead_bytes;
        group.counters = counters;
        group.landing_bytes = store.landing().bytes();
        group.deferred_segments = store.deferred() as u64;
        let staged = store.landing().staged();
        group.volumes = state
            .volumes()
            .map(|(id, volume)| ReceiverVolume {
                name: volume.meta().name.to_string(),
                id: id.to_string(),
                bytes: volume.meta().geometry.volume_bytes(),
                term: volume.term().0,
                generation: volume.meta().generation.0,
                seq: volume.last_seq().0,
                staged: staged.get(&id).copied().unwrap_or(0),
                last_point: state.newest_point_of(id).and_then(shown),
                encryption: volume.meta().digest_key.seal().map(|seal| seal.mode.word().to_owned()),
            })
            .collect();
        group.volumes.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(torn) = store.torn() {
            let message = format!("the ledger of {} is torn in slot {} ({}: {})", self.names, torn.slot, torn.file, torn.why);
            let what = way_out(torn, store_path);
            group.reasons.push(Reason::new(Severity::Error, Code::LedgerTorn, message, what));
        }
        let behind = |id: &VolumeId| newest.is_some_and(|n| n.members.iter().all(|m| m.key.volume != *id));
        for (id, volume) in state.volumes().filter(|(id, _)| behind(id)) {
            let name = &volume.meta().name;
            let last = state.newest_point_of(id).map_or_else(
                || "no point holds it".to_owned(),
                |point| format!("its newest one is {}, cut {}", point.slot, wall(point.epoch.wall_ms)),
            );
            let message = format!("volume {name} is not in the newest point of {}: {last}", self.names);
            let what = "see `farside status` on its host: it is syncing, comparing, paused, or waits for a person there";
            group.reasons.push(Reason::new(Severity::Warning, Code::VolumeNotInPoints, message, what));
        }
        if let Some(since) = store.deferred_since().filter(|since| since.elapsed() > WAITS_LONG) {
            let message = format!(
                "{} segments of {} that nothing needs any more wait to be deleted, for {} s: somebody reads the store",
                store.deferred(),
                self.names,
                since.elapsed().as_secs()
            );
            let what = "`farside job list`, as each user who may have opened a point or begun a drill; or see who holds `reader.lock` of the store open (`fuser`)";
            group.reasons.push(Reason::new(Severity::Warning, Code::DeletionWaits, message, what));
        }
        let damaged = store.damaged();
        if let Some(first) = damaged.first() {
            let message = format!(
                "{} segments of {} are damaged or missing ({first}…): what they held cannot be restored, also from newer points",
                damaged.len(),
                self.names
            );
            let by_volume = store.damaged_by_volume();
            let names = by_volume.keys().filter_map(|id| Some(state.volume(*id)?.meta().name.to_string()));
            let names = names.collect::<Vec<_>>().join(", ");
            // One that its host has no more is in no new point.
            let is_old = newest.is_some() && by_volume.keys().all(behind);
            let what = match is_old {
                false => {
                    format!(
                        "on the host: `farside volume resync NAME` sends it again ({names}); or put the files back from a copy of the store"
                    )
                }
                true => format!(
                    "put the files back from a copy of the store, or, if the host still has it, `farside volume resync NAME` there ({names}); until then \
                     the points with it are kept, and all others are given up as usual"
                ),
            };
            group.reasons.push(Reason::new(Severity::Error, Code::SegmentsDamaged, message, what));
            group.lag_ms = None;
        }
        if let Some(wait) = budget_wait.filter(|_| target.staged_since().is_some()) {
            let message = format!(
                "points of {} wait to be published: the requests that `publish_budget` allows are used up for {} s",
                self.names,
                wait.as_secs().max(1)
            );
            let what =
                "it goes on by itself; raise `publish_budget`, or make points further apart (`farside group set NAME --epoch`)";
            group.reasons.push(Reason::new(Severity::Info, Code::PublicationWaits, message, what));
        }
        if let Some(trouble) = target.trouble() {
            let what = "it goes on by itself when the store can be written again";
            group.reasons.push(Reason::new(Severity::Error, Code::StoreFailed, trouble, what));
        }
    }

    /// Nothing is lost when nobody serves it: somebody greeted with its name once, and claimed nothing.
    pub(crate) fn is_vacant(&self) -> bool {
        self.is_empty && self.hosts.values().all(|seen| seen.from.is_none())
    }

    /// Who but that one was heard last: how long ago, and from where it is connected. Whoever is connected comes first.
    pub(crate) fn heard_beside(&self, fenced: Option<&Name>) -> Option<(Name, Duration, Option<String>)> {
        let others = self.hosts.iter().filter(|(host, _)| Some(*host) != fenced);
        let newest = others.max_by_key(|(_, seen)| seen.rank());
        newest.map(|(host, seen)| (host.clone(), seen.heard.elapsed(), seen.from.clone()))
    }

    /// How old what its newest point holds is, now.
    pub(crate) fn lag_ms(&self) -> Option<u64> {
        self.at(Instant::now()).lag_ms
    }

    /// The newest slot of its ledger.
    pub(crate) fn head(&self) -> Option<u64> {
        self.group.head_slot
    }

    /// The highest of its volumes.
    pub(crate) fn highest_generation(&self) -> Generation {
        Generation(self.group.volumes.iter().map(|volume| volume.generation).max().unwrap_or(0))
    }

    /// Whether the address names one of its volumes.
    pub(crate) fn has_volume(&self, address: &Address) -> bool {
        let (source, group) = (self.names.source.as_str(), self.names.group.as_str());
        self.group.volumes.iter().any(|volume| address.is_volume(source, group, &volume.name))
    }

    /// Those of its volumes that the address names, with their sizes.
    pub(crate) fn volumes_of(&self, address: &Address) -> impl Iterator<Item = (String, u64)> {
        let (source, group) = (self.names.source.as_str(), self.names.group.as_str());
        self.group
            .volumes
            .iter()
            .filter(move |volume| address.is_volume(source, group, &volume.name))
            .map(|volume| (volume.name.clone(), volume.bytes))
    }

    /// As it is at `now`.
    fn at(&self, now: Instant) -> ReceiverGroup {
        let mut group = self.group.clone();
        let since = millis(now.saturating_duration_since(self.made));
        for ms in [&mut group.lag_ms, &mut group.staged_lag_ms, &mut group.unpublished_ms] {
            *ms = ms.map(|ms| ms.saturating_add(since));
        }
        group
    }
}

/// How long ago a point was published, by this machine's clock, which wrote its record.
pub(crate) fn since_published(point: &farside_ledger::Point) -> Duration {
    since_1970().saturating_sub(Duration::from_millis(u64::try_from(point.published_wall_ms).unwrap_or(0)))
}

/// By this machine's clock.
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What a source wants to be kept could not be written down.
pub(crate) fn retention_is_unkept(names: &GroupNames, why: &str) -> Reason {
    let message = format!("what is to be kept of {names} is not known to the next start of this gateway: {why}");
    let what = "mend the disk that holds the state directory; until then more is kept, and it is tried again by itself";
    Reason::new(Severity::Warning, Code::RetentionUnsaid, message, what)
}

/// There are too many rules for one policy of what a host that stands in wants to be kept, and of what was before.
pub(crate) fn retention_has_no_room(names: &GroupNames) -> Reason {
    let message = format!(
        "the last grid that was said for {names} does not hold: what the grids before it keep is kept until the failover ends, and all of them have too many rules"
    );
    let what = "nothing is given up for that; say a grid of rules that were said before, or end the failover: then the last one holds by itself";
    Reason::new(Severity::Warning, Code::RetentionUnsaid, message, what)
}

/// What a person does about a torn ledger.
pub(crate) fn way_out(torn: &Torn, store: &Path) -> String {
    let whole = "points before it can be restored";
    if torn.newer {
        return format!("{whole}; install the newer version of farside that wrote it");
    }
    let is_bucket = matches!(store.display().to_string().parse(), Ok(Location::Bucket(_)));
    let from = if is_bucket { "from another version of the object, or a copy of the bucket" } else { "from a copy of the store" };
    // † It stands for the record, which nobody needs: a repair gives nothing up for it.
    if let Some(checkpoint) = &torn.checkpoint {
        return format!("{whole}; put the checkpoint {checkpoint} back {from}, which is noticed within a minute");
    }
    let what = if torn.lost_claim.is_some() { "the ledger's newest records" } else { "the file" };
    let back = format!("{whole}; put {what} back {from}, which is noticed within a minute");
    match is_bucket {
        true => back,
        false => format!("{back}; if there is none, stop farside-receiver and run: farside store repair {}", store.display()),
    }
}

/// The whole receiver.
pub(crate) fn receiver(receiver: &Receiver) -> ReceiverStatus {
    let now = Instant::now();
    let mut reasons = Vec::new();
    let store = store_status(receiver, &mut reasons);
    let views: Vec<_> = receiver.roster.all().iter().map(|group| group.view()).collect();
    let paired = receiver.book.sources().into_iter().map(|paired| (paired.name, paired.fingerprint.to_string()));
    let groups = views.iter().map(|view| {
        let mut group = view.at(now);
        group.reasons.extend(receiver.schedule.reason(&view.names));
        // After a failover nobody is missed, but whoever stands in.
        let publisher = receiver.failovers.stand_in_of(&view.names).unwrap_or_else(|| Some(view.names.source.clone()));
        hosts::Spoken { view, group, publisher }
    });
    let sources = hosts::sources(paired.collect(), groups.collect(), now);
    reasons.extend(receiver.roster.hidden().into_iter().map(|words| {
        let what = "hosts that come are served all the same; it is tried again by itself: let the receiver look there (see what `farside store check` says)";
        Reason::new(Severity::Error, Code::StoreFailed, words, what)
    }));
    reasons.extend(receiver.stale().into_iter().map(|words| {
        let what = "mend it, then: farside reload --socket PATH; or restart farside-receiver for what only a restart can change";
        Reason::new(Severity::Warning, Code::ConfigurationStale, words, what)
    }));
    reasons.extend(receiver.refusals.lines(now).into_iter().map(|(name, words)| {
        // As after the state directory was lost: nothing is received of what the store has of it.
        let is_missed = name.is_some_and(|name| {
            sources.iter().any(|source| source.name == name.as_str() && source.fingerprint.is_none() && !source.groups.is_empty())
        });
        refused_peer(words, is_missed)
    }));
    if receiver.listener.tcp_address().is_none() && receiver.config().listen_tcp.is_none() {
        let words = format!("TCP is not listened to: another service has port {}", receiver.local_address.port());
        let what = "hosts whose UDP does not get through are not reached: give it another port, `listen_tcp` in receiver.toml, or say \"none\"";
        reasons.push(Reason::new(Severity::Info, Code::OverTcp, words, what));
    }
    let followers = receiver.followers.show();
    reasons.extend(receiver.followers.reasons());
    reasons.extend(receiver.failovers.reasons());
    reasons.extend(receiver.cohorts.reasons());
    ReceiverStatus {
        followers,
        cohorts: receiver.cohorts.tallies(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: receiver.local_address.to_string(),
        listen_tcp: receiver.listener.tcp_address().map(|address| address.to_string()),
        fingerprint: receiver.fingerprint.to_string(),
        uptime_ms: millis(receiver.started.elapsed()),
        store: StoreStatus {
            used_bytes: views.iter().map(|v| v.group.used_bytes).sum(),
            landing_bytes: views.iter().map(|v| v.group.landing_bytes).sum(),
            ..store
        },
        sources,
        receive_budget: receiver.budget_status(),
        refused_peers: receiver.refusals.count(),
        reasons,
    }
}

/// Somebody was refused. `is_missed`: under the name of a host whose groups are here, and that is not paired (any more).
fn refused_peer(words: String, is_missed: bool) -> Reason {
    let what = "if it should be let in: `farside-receiver token` here, then `farside pair TOKEN` there";
    Reason::new(if is_missed { Severity::Warning } else { Severity::Info }, Code::RefusedPeer, words, what)
}

fn store_status(receiver: &Receiver, reasons: &mut Vec<Reason>) -> StoreStatus {
    let space = receiver.vault.space();
    let free_bytes = space.map_or(0, |space| space.grantable());
    // Where sources are told so, too.
    let full_below = target::Limits::default().credit_step;
    let open = receiver.vault.current().map(drop);
    if let Err(words) = &open {
        let what = "existing points are intact; it goes on by itself when the store answers again";
        reasons.push(Reason::new(Severity::Error, Code::StoreFailed, words, what));
    } else if free_bytes < full_below {
        let (landing, is_staging) = receiver.vault.landing();
        let path = landing.display();
        let message = match space {
            Some(space) if space.is_short_of_files() => {
                let left = space.files_available;
                format!(
                    "the file system of {path} is short of inodes: {left} more files can be made, which are kept for the ledger"
                )
            }
            _ => format!("the file system of {path} is full: {free_bytes} bytes are left above what is kept for the ledger"),
        };
        let what = if is_staging {
            "free space there; what waits there goes to the bucket as that answers, and as `publish_budget` allows"
        } else {
            "free space there, or keep fewer points (`farside group set NAME --keep N --span 1h` on the sources; while segments are damaged, no point that is older than they are goes; while it is not known what readings found, none of then: farside point verify latest --of GROUP)"
        };
        reasons.push(Reason::new(Severity::Error, Code::GatewayFull, message, what));
    }
    StoreStatus {
        path: receiver.vault.path().clone(),
        id: receiver.vault.id().map(|id| HEXLOWER.encode(&id)).unwrap_or_default(),
        free_bytes,
        used_bytes: 0,
        landing_bytes: 0,
        reserve_bytes: space.map_or(0, |space| space.reserve()),
        writable: open.is_ok() && free_bytes >= full_below,
    }
}

/// A point as the API shows it.
pub fn point(names: &GroupNames, point: &PointInfo) -> Point {
    Point {
        id: PointId::new(point.slot.0, &point.digest.0),
        source: names.source.to_string(),
        group: names.group.to_string(),
        cut_wall: wall(point.epoch.wall_ms),
        cut_mono_before_ns: point.epoch.mono_before_ns,
        cut_mono_after_ns: point.epoch.mono_after_ns,
        boot: HEXLOWER.encode(&point.epoch.boot.0),
        ledger_time_ms: point.ledger_time_ms,
        members: point
            .members
            .iter()
            .map(|member| PointMember {
                volume: member.name.to_string(),
                volume_id: member.volume.to_string(),
                bytes: member.volume_bytes,
                term: member.layer.term.0,
                seq: member.layer.seq.0,
                layer_bytes: Some(member.layer_bytes),
            })
            .collect(),
        pinned: !point.pins.is_empty(),
        pins: point.pins.iter().map(|(slot, reason)| PointPin { slot: slot.0, reason: reason.clone() }).collect(),
        degraded: point.degraded,
        verified: point.proofs.iter().map(|(how, proof)| verified(how, proof)).collect(),
        consistency: match point.label.as_ref().map(|label| label.consistency) {
            Some(farside_ledger::Consistency::Application) => Consistency::Application,
            Some(farside_ledger::Consistency::Cohort(_)) => Consistency::Cohort,
            Some(farside_ledger::Consistency::Crash) | None => Consistency::Crash,
        },
        cut: point
            .label
            .as_ref()
            .and_then(|label| label.consistency.cohort_cut())
            .map(|cut| PointCut::new(&cut.cut, cut.groups, cut.wall_ms)),
        title: point.label.as_ref().map(|label| label.title.clone()).unwrap_or_default(),
        hooks: point.label.as_ref().map(|label| label.hooks.clone()).unwrap_or_default(),
    }
}

/// That a point was verified, as the API shows it.
pub(crate) fn verified(how: farside_ledger::VerifiedHow, proof: &Proof) -> PointVerified {
    let how = match how {
        farside_ledger::VerifiedHow::ReadBack => VerifiedHow::ReadBack,
        farside_ledger::VerifiedHow::WithSource => VerifiedHow::WithSource,
    };
    PointVerified { how, at: wall(proof.wall_ms) }
}

fn newest_is_known(store: &GroupStore) -> bool {
    store.torn().is_none() && !store.state().points().is_empty()
}

pub(crate) fn wall(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(if ms < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The wrong file was searched for on the worst day, and a command named that there is not for a bucket.
    #[test]
    fn the_way_out_of_a_torn_ledger_names_what_must_come_back() {
        let torn = Torn {
            slot: farside_region::Slot(7),
            file: "ledger/0/7".to_owned(),
            why: String::new(),
            newer: false,
            lost_claim: None,
            checkpoint: None,
        };
        let at = |torn: &Torn, store: &str| way_out(torn, Path::new(store));
        assert!(at(&torn, "/srv/farside").ends_with("farside store repair /srv/farside"));
        let bucket = at(&torn, "s3://points/site");
        assert!(bucket.contains("another version of the object") && !bucket.contains("store repair"), "{bucket}");
        let covered = Torn { checkpoint: Some("checkpoint/3".to_owned()), ..torn };
        for store in ["/srv/farside", "s3://points/site"] {
            let words = at(&covered, store);
            assert!(words.contains("put the checkpoint checkpoint/3 back") && !words.contains("repair"), "{words}");
        }
    }
}
