//! What people are told. Computed from what was published, on one clock (L10).

use farside_ledger::{EpochInfo, LayerKind};
use farside_region::{Generation, GranuleSet, LedgerPosition, Name, Term, VolumeId};
use farside_wire::Notice;

use super::Kind;
use super::api::{DemoteCause, Nanos, SECOND};
use super::volume::{Frozen, Layer, Service, Stage, Standing, Volume};

/// A gateway calls its disk full that has less for all its sources: a step of its grants.
pub(crate) const FULL_BELOW: u64 = 32 << 20;
/// So long a group may wait for room that others have before it is worth a word.
const STARVED_AFTER: Nanos = 10 * SECOND;

/// How a volume is, in one word; details are in [`VolumeStatus`].
///
/// ```text
/// Idle ──connected, checked──► Behind ⇄ Streaming          any ──► Paused, Refused(..), TrackingLost
///   ▲────────── disconnected, or not yet claimed
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Tracked, not replicated: no connection, or the claim is not made yet.
    Idle,
    /// Layers are passes.
    Behind(Behind),
    /// Cuts succeed.
    Streaming,
    /// A person paused it.
    Paused,
    /// Something could bypass the tap, or the intent map cannot be written; a compare of everything will follow.
    TrackingLost,
    /// Refused by name; a person decides.
    Refused(RefusedWhy),
}

/// What a volume that is behind is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Behind {
    /// The first copy.
    FirstSync,
    /// Comparing, after a crash or because a person asked.
    Comparing,
    /// More changed than a cut may hold.
    CatchingUp,
    /// The receiver's disk is full; existing points are intact.
    GatewayFull,
    /// The receiver cannot publish.
    StoreFailed,
}

/// Why a volume refuses to go on (L6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusedWhy {
    /// The published history is not this disk's: a rollback, a clone, or a reinstalled host (T17).
    Forked,
    /// The ledger is older than what this source saw published.
    TargetRewound,
    /// A newer generation exists.
    Fenced,
    /// The backing became smaller, or has another geometry than the ledger.
    Shape,
    /// It is encrypted in the ledger and not here, or here and not there, or with another key.
    Key,
}

/// What is not well at the receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// Its disk is full.
    Full {
        /// What is left for all sources.
        free_bytes: u64,
        /// What it keeps for its ledger and for pruning.
        reserve_bytes: u64,
    },
    /// Its disk has room, which others were granted; this group owes something, and was granted nothing more for a while.
    Crowded {
        /// What is left for all sources.
        free_bytes: u64,
    },
    /// It cannot publish.
    StoreFailed {
        /// Why, for a person.
        text: String,
    },
}

/// All about a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// A connection stands and greeted.
    pub connected: bool,
    /// What the receiver last said about itself, if not well.
    pub receiver_trouble: Option<Trouble>,
    /// One per volume.
    pub volumes: Vec<VolumeStatus>,
    /// The last cut that was given up, and why.
    pub last_demotion: Option<(Nanos, DemoteCause)>,
    /// What a cut may presently hold, in bytes.
    pub cut_budget_bytes: u64,
}

/// All about a volume.
#[derive(Clone, Debug, PartialEq)]
pub struct VolumeStatus {
    /// Which.
    pub volume: VolumeId,
    /// Its name.
    pub name: Name,
    /// In a word.
    pub state: State,
    /// The term under which layers are sent.
    pub term: Option<Term>,
    /// The promotion that fences it, while it is.
    pub fenced_by: Option<Generation>,
    /// What the receiver says to its claim, which is made again as long as it is not taken.
    pub claim_refused: Option<String>,
    /// The newest point that there was when it was refused.
    pub refused_at: Option<LedgerPosition>,
    /// Age of what the newest published point (or a newer heartbeat) shows, in ns; `None` = there is none of this boot.
    pub lag: Option<Nanos>,
    /// Age of the newest cut that is staged as a whole, in ns, or of what is published, if that is newer: see
    /// [`Self::lag`].
    pub staged_lag: Option<Nanos>,
    /// The newest point that holds this volume.
    pub newest_point: Option<PointStatus>,
    /// The pass or cut being read.
    pub reading: Option<Progress>,
    /// Bytes in the open map. With what else is not known published: [`super::Source::backlog_bytes`].
    pub open_bytes: u64,
    /// Still to be compared.
    pub compare_bytes: u64,
    /// Layers sent or being sent and not known published.
    pub unpublished_layers: usize,
    /// Bytes of granules that could not be read from the backing.
    pub unreadable_bytes: u64,
    /// A flush of the backing failed in this attach (T14).
    pub flush_failed: bool,
    /// Set when passes end with as much dirt as they began with.
    pub not_converging: Option<NotConverging>,
    /// The verify under way, or the newest one of this attach.
    pub verify: Option<super::VerifyReport>,
    /// The receiver encrypts what its store keeps, and this volume began without.
    pub is_in_clear: bool,
}

/// A published point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointStatus {
    /// Its record.
    pub position: LedgerPosition,
    /// When it was cut.
    pub epoch: EpochInfo,
}

/// How far the frozen set is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Read so far.
    pub done_bytes: u64,
    /// The whole set.
    pub total_bytes: u64,
    /// When it was frozen, on the clock of `now`.
    pub since: Nanos,
    /// Bytes of parts that it became so far.
    pub sent_bytes: u64,
}

/// The numbers behind "not converging".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotConverging {
    /// Bytes that the host dirtied per second over the last pass.
    pub dirty_bytes_per_s: u64,
    /// Bytes that could be read and sent per second.
    pub sent_bytes_per_s: u64,
    /// What a cut would have to hold.
    pub needed_cut_bytes: u64,
}

impl super::Source {
    /// What people are told, as of `now`.
    pub fn status(&self, now: Nanos) -> Status {
        let receiver_trouble = self.receiver_trouble(now);
        Status {
            connected: matches!(self.link, super::Link::Up { .. }),
            receiver_trouble,
            volumes: self.volumes.values().map(|v| self.volume_status(now, v)).collect(),
            last_demotion: self.last_demotion,
            cut_budget_bytes: self.cut_budget,
        }
    }

    fn receiver_trouble(&self, now: Nanos) -> Option<Trouble> {
        match self.trouble.as_ref()? {
            Notice::GatewayFull { free_bytes, reserve_bytes } if *free_bytes < FULL_BELOW => {
                Some(Trouble::Full { free_bytes: *free_bytes, reserve_bytes: *reserve_bytes })
            }
            // A group that has nothing to send may have next to nothing granted for ever, and nobody waits for it.
            Notice::GatewayFull { free_bytes, .. } => {
                self.is_starved(now).then_some(Trouble::Crowded { free_bytes: *free_bytes })
            }
            Notice::StoreFailed { text } => Some(Trouble::StoreFailed { text: text.clone() }),
            other => Some(Trouble::StoreFailed { text: format!("{other:?}") }),
        }
    }

    /// Whether it owes something that it was granted no room for, for a while: what others have comes back as theirs lands.
    pub(super) fn is_starved(&self, now: Nanos) -> bool {
        let super::Link::Up { granted, spent, granted_at, .. } = self.link else { return false };
        let is_little = granted.saturating_sub(spent) < self.config.limits.part_bytes / 4;
        is_little && now >= granted_at.saturating_add(STARVED_AFTER) && self.volumes.values().any(|volume| self.owes(volume))
    }

    /// Whether something of it is not known published.
    fn owes(&self, volume: &Volume) -> bool {
        let taken = self.switching.as_ref().and_then(|s| s.members.get(&volume.id()));
        !volume.owes_nothing() || volume.sample.dirty_bytes > 0 || taken.is_some_and(|t| !t.extra.is_empty())
    }

    fn volume_status(&self, now: Nanos, volume: &Volume) -> VolumeStatus {
        VolumeStatus {
            volume: volume.id(),
            name: volume.meta.name.clone(),
            state: self.state_of(volume),
            term: volume.held,
            fenced_by: volume.fenced_by.filter(|_| volume.standing == Standing::Refused(RefusedWhy::Fenced)),
            claim_refused: volume.claim_refused.clone(),
            refused_at: volume.refused_at.filter(|_| matches!(volume.standing, Standing::Refused(_))),
            lag: self.lag_of(now, volume),
            staged_lag: self.staged_lag_of(now, volume),
            newest_point: volume.newest_point,
            reading: volume.frozen.values().filter(|f| f.done_bytes < f.total_bytes).map(progress).next(),
            open_bytes: volume.sample.dirty_bytes,
            compare_bytes: volume.compare_bytes(),
            unpublished_layers: volume.layers.len(),
            unreadable_bytes: volume.granule_bytes(&volume.unreadable.granules),
            flush_failed: volume.flush_failed,
            not_converging: volume.not_converging,
            verify: volume.verify_report.clone(),
            is_in_clear: volume.is_in_clear(),
        }
    }

    /// Bytes of a volume that are not known published, each granule once: what is open, which only the driver knows, frozen and
    /// unpublished layers, what is still to be compared or sent again. Unreadable granules are none of it.
    pub fn backlog_bytes(&self, id: VolumeId, open: &GranuleSet) -> u64 {
        let Some(volume) = self.volumes.get(&id) else { return 0 };
        let mut set = volume.unpublished();
        if let Some(taken) = self.switching.as_ref().and_then(|s| s.members.get(&id)) {
            set.union_with(&taken.extra);
        }
        set.union_with(open);
        // A write in flight, or a switch that nobody looked behind yet, is not "nothing".
        volume.granule_bytes(&set).max(volume.sample.in_flight.min(1)).min(volume.geometry().volume_bytes())
    }

    fn state_of(&self, volume: &Volume) -> State {
        match (volume.standing, volume.service) {
            (Standing::Refused(why), _) => return State::Refused(why),
            (Standing::TrackingLost, _) => return State::TrackingLost,
            (_, Service::Paused | Service::Leaving) => return State::Paused,
            // The driver says why.
            (Standing::Good, Service::Unread) => return State::Idle,
            (Standing::Good, Service::Running) => {}
        }
        if !volume.is_checked() {
            return State::Idle;
        }
        let switching = self.switching.as_ref().filter(|s| s.members.contains_key(&volume.id()));
        let taken = switching.and_then(|s| s.members.get(&volume.id()));
        let owes = self.owes(volume);
        match &self.trouble {
            Some(Notice::GatewayFull { free_bytes, .. }) if *free_bytes >= FULL_BELOW => {} // others have it
            Some(Notice::GatewayFull { .. }) if owes => return State::Behind(Behind::GatewayFull),
            Some(_) if owes => return State::Behind(Behind::StoreFailed),
            _ => {}
        }
        let comparing = !volume.compare.is_empty()
            || taken.is_some_and(|t| !t.compare.is_empty())
            || volume.frozen.values().any(|f| !f.compare.is_empty());
        let passing = volume.point_due
            || volume.weight() > self.cut_budget
            || switching.is_some_and(|s| s.kind == LayerKind::Fuzzy)
            || volume.frozen.keys().any(|e| self.epochs.get(e).is_some_and(|e| e.kind != Kind::Cut));
        if volume.newest_point.is_none() && !volume.ever_published && owes {
            State::Behind(Behind::FirstSync)
        } else if comparing {
            State::Behind(Behind::Comparing)
        } else if passing && !volume.ever_point() {
            State::Behind(Behind::FirstSync)
        } else if passing {
            State::Behind(Behind::CatchingUp)
        } else {
            State::Streaming
        }
    }

    /// Age of the newest cut or heartbeat that is published, on this machine's clock alone.
    fn lag_of(&self, now: Nanos, volume: &Volume) -> Option<Nanos> {
        let point = volume.newest_point.map(|p| p.epoch).filter(|e| e.boot == self.config.boot).map(|e| e.mono_before_ns);
        let quiet = volume.quiet.filter(|q| q.boot == self.config.boot).map(|q| q.mono_ns);
        let newest = point.max(quiet)?;
        Some(now.saturating_sub(newest))
    }

    /// The same of what the receiver holds, published or not. A cut that is staged for some of its members only is no point yet.
    fn staged_lag_of(&self, now: Nanos, volume: &Volume) -> Option<Nanos> {
        let is_whole = |layer: &&Layer| {
            let is_cut = self.epochs.get(&layer.epoch).is_some_and(|epoch| epoch.kind == Kind::Cut);
            is_cut && self.layers_of(layer.epoch).all(|of_it| of_it.stage == Stage::Staged)
        };
        let newest = volume.layers.iter().rev().find(is_whole);
        let staged = newest.map(|layer| now.saturating_sub(layer.info.mono_before_ns));
        [staged, self.lag_of(now, volume)].into_iter().flatten().min()
    }
}

fn progress(frozen: &Frozen) -> Progress {
    Progress {
        done_bytes: frozen.done_bytes,
        total_bytes: frozen.total_bytes,
        since: frozen.since,
        sent_bytes: frozen.sent_bytes,
    }
}

impl Volume {
    fn ever_point(&self) -> bool {
        self.newest_point.is_some()
    }
}
