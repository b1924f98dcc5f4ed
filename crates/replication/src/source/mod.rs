//! The source's side of one group.
//!
//! [`Source::step`] is one flat dispatcher; what follows from any event is looked for afterwards, in the same order each time:
//! volumes that leave, checks that are due, ends to be said, a switch, parts to be read.
//!
//! | File | Owns |
//! |---|---|
//! | `api` | events, actions, limits |
//! | `volume` | what one volume owes and has under way |
//! | `check` | greeting, position rule, claim, resume |
//! | `cutter` | the switch, demotion |
//! | `send` | parts, end messages, acknowledgements |
//! | `line` | how long parts may be on a line that breaks |
//! | `loss` | tracking that was lost, and who keeps that |
//! | `upkeep` | header position, cooling, heartbeats |
//! | `verify` | the whole volume against what is published |
//! | `wish` | points that are asked for, and applications that are quiesced for them |
//! | `status` | what people are told |

mod api;
mod check;
mod cutter;
mod line;
mod loss;
mod send;
mod status;
mod upkeep;
mod verify;
mod volume;
mod wish;

use std::collections::{BTreeMap, BTreeSet};

use farside_ledger::LayerKind;
use farside_region::{EpochId, GranuleSet, LayerKey, RegionIndex, VolumeId, mutation};
use farside_wire::{Features, Notice, ReceiverMessage, Refusal, RefusalCode, RequestId, SourceMessage};

pub use api::{
    Action, Config, DemoteCause, Ended, Event, LayerDigestFn, Limits, Nanos, PartRead, Problem, ReadPart, Report, SECOND, Sample,
    SentPart, Start, SwitchDone, SwitchMember, Tick, VerifyChunk, VerifyRead, VolumeSetup,
};
pub(crate) use status::FULL_BELOW;
pub use status::{Behind, NotConverging, PointStatus, Progress, RefusedWhy, State, Status, Trouble, VolumeStatus};
pub use verify::{VerifyOutcome, VerifyReport};
pub use wish::{Around, Wish, WishState, WishStatus};

use cutter::Taken;
use line::Line;
use volume::{HeatFor, Layer, Reclaim, Service, Volume};
use wish::{Labelled, Wishes};

const MENTIONED: &str = "cool a region that somebody still mentions";

/// Decides for one group of volumes at the protected host.
///
/// Its `now` is the clock of [`CutTime::mono_ns`](farside_ledger::CutTime), CLOCK_MONOTONIC: lag is the difference of the two.
#[derive(Debug)]
pub struct Source {
    config: Config,
    phase: Phase,
    link: Link,
    line: Line,
    volumes: BTreeMap<VolumeId, Volume>,
    epochs: BTreeMap<EpochId, Epoch>,
    switching: Option<Switching>,
    /// A demotion that was told before its switch was.
    demoted_early: Option<(EpochId, DemoteCause)>,
    last_request: RequestId,
    last_cut: Option<Nanos>,
    last_heartbeat: Nanos,
    /// What a cut may hold, in bytes: halved by an overflow, doubled by a point.
    cut_budget: u64,
    last_demotion: Option<(Nanos, DemoteCause)>,
    trouble: Option<Notice>,
    /// The receiver said that it has no room, and not since that all is well.
    is_gateway_full: bool,
    digests_retry: Option<Nanos>,
    /// What both can do, on the newest connection.
    features: Features,
    /// What the receiver's store is to keep, before anything is claimed.
    wrapped_keys: Vec<Vec<u8>>,
    key_answer: KeyAnswer,
    /// Layers were staged since the receiver was asked last to publish what is.
    staged_unasked: bool,
    wishes: Wishes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// A planned stop waits for everything to be published.
    Draining,
    Halted,
}

/// What is known, on the newest connection, of the key that the receiver may give for the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyAnswer {
    NotAsked,
    /// Nothing is asked of any volume before.
    Awaited,
    Here,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    /// Hello is sent.
    Greeting {
        connection: u64,
    },
    Up {
        connection: u64,
        since: Nanos,
        /// What the receiver allows in sum, and what was sent.
        granted: u64,
        spent: u64,
        /// When it allowed more, or the connection began.
        granted_at: Nanos,
    },
}

impl Link {
    fn connection(self) -> Option<u64> {
        match self {
            Self::Down => None,
            Self::Greeting { connection } | Self::Up { connection, .. } => Some(connection),
        }
    }
}

/// A frozen epoch of the group, until no volume holds anything of it.
#[derive(Debug)]
struct Epoch {
    kind: Kind,
    members: BTreeSet<VolumeId>,
    since: Nanos,
    bytes: u64,
    hold: Hold,
    label: Labelled,
}

/// What an epoch is. A cut may become a pass, never the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Cut,
    /// Was a cut; said as fuzzy, all members in one message (T10).
    Demoted,
    /// Each member in slices of its own.
    Pass,
}

/// Whether the shim still keeps the epoch's claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Held,
    Released,
}

/// A switch that was asked for.
#[derive(Debug)]
struct Switching {
    kind: LayerKind,
    /// On which connection it was decided.
    connection: Option<u64>,
    members: BTreeMap<VolumeId, Taken>,
    /// What is to be said of the cut, if a wish asked for it.
    wished: Option<Labelled>,
}

impl Source {
    /// A group without volumes and without a connection.
    pub fn new(config: Config) -> Self {
        let cut_budget = config.limits.cut_bytes_max;
        let line = Line::new(config.limits.part_bytes_min, config.limits.part_bytes);
        Self {
            config,
            phase: Phase::Running,
            link: Link::Down,
            line,
            volumes: BTreeMap::new(),
            epochs: BTreeMap::new(),
            switching: None,
            demoted_early: None,
            last_request: RequestId(0),
            last_cut: None,
            last_heartbeat: 0,
            cut_budget,
            last_demotion: None,
            trouble: None,
            is_gateway_full: false,
            digests_retry: None,
            features: Features::default(),
            wrapped_keys: Vec::new(),
            key_answer: KeyAnswer::NotAsked,
            staged_unasked: false,
            wishes: Wishes::default(),
        }
    }

    /// Takes one event; appends what is to be done.
    pub fn step(&mut self, now: Nanos, event: Event, actions: &mut Vec<Action>) {
        if self.phase == Phase::Halted && !matches!(event, Event::SwitchDone(_)) {
            return;
        }
        match event {
            Event::AddVolume(setup) => self.add_volume(now, *setup, actions),
            Event::RemoveVolume { volume } => self.set_service(volume, Service::Leaving),
            Event::Connected { connection } => self.connected_anew(now, connection, actions),
            Event::Disconnected { connection, how } if self.link.connection() == Some(connection) => {
                self.disconnected(now, how, actions);
            }
            Event::Message { connection, message } if self.link.connection() == Some(connection) => {
                self.message(now, *message, actions);
            }
            Event::Tick(tick) => self.tick(now, &tick, actions),
            Event::HeaderDurable { volume, confirmed, position } => self.header_durable(volume, confirmed, position, actions),
            Event::SwitchDone(done) => self.switch_done(now, done, actions),
            Event::Demoted { epoch, why } => self.demoted(now, epoch, why, actions),
            Event::PartRead(read) if self.link.connection() == Some(read.connection) => self.part_read(now, &read, actions),
            Event::PartAborted { connection, key, part } if self.link.connection() == Some(connection) => {
                self.part_aborted(key, part);
            }
            Event::DigestsWanted { connection, key, part, run } if self.link.connection() == Some(connection) => {
                self.digests_wanted(key, part, run, actions);
            }
            Event::CoolWanted { volume, regions } => self.cool_wanted(now, volume, &regions, actions),
            Event::HotRegions { volume, regions } => self.hot_regions(volume, &regions, actions),
            Event::AllHot { volume } => self.all_hot(now, volume, actions),
            Event::Verify { volume } => self.verify(now, volume),
            Event::VerifyRead { volume, read } => self.verify_read(volume, &read, actions),
            Event::Heated { volume, regions } => self.heated(volume, &regions),
            Event::TrackingLost { volume } => self.tracking_lost(now, volume, actions),
            Event::ReaderLost { volume } => self.reader_lost(now, volume, actions),
            Event::KeepLoss { volume } => self.keep_loss(volume),
            Event::FlushFailed { volume } => {
                if let Some(volume) = self.volumes.get_mut(&volume) {
                    volume.flush_failed = true;
                }
            }
            Event::Pause { volume } => self.pause(now, volume, actions),
            Event::Resume { volume } => self.set_service(volume, Service::Running),
            Event::Accept { volume } => self.accept(now, volume, actions),
            Event::TakeBack { volume, at } => self.take_back(now, volume, at, actions),
            Event::Withdraw { volume } => self.withdraw(now, volume, actions),
            Event::Resync { volume } => self.heat(now, volume, HeatFor::Resync, actions),
            Event::SetEpochInterval { interval } => self.config.limits.epoch_interval = interval,
            Event::SetPolicy { policy, is_said } => {
                (self.config.policy, self.config.policy_is_said) = (policy, is_said);
                self.send_settings(actions);
            }
            Event::SetWrappedKeys { wrapped } => self.wrapped_keys = wrapped,
            Event::KeyAnswered { connection, seals } if self.link.connection() == Some(connection) => self.key_answered(&seals),
            Event::Wish(wish) => self.wish(now, wish, actions),
            Event::Lacks { volumes } => self.lacks(volumes),
            Event::ForgetWish { wish } => self.forget_wish(wish),
            Event::Quiesced { wish, result } => self.quiesced(now, wish, result, actions),
            Event::Resumed { epoch, result } => self.resumed(epoch, result, actions),
            Event::Drain => {
                self.phase = Phase::Draining;
                self.drop_wishes(actions);
                self.stop_verifies(now);
            }
            Event::Halt => self.halt(now, actions),
            // Of a connection that is gone.
            Event::Disconnected { .. }
            | Event::KeyAnswered { .. }
            | Event::Message { .. }
            | Event::PartRead(_)
            | Event::PartAborted { .. }
            | Event::DigestsWanted { .. } => {}
        }
        if self.phase != Phase::Halted {
            self.follow_up(now, actions);
        }
    }

    fn follow_up(&mut self, now: Nanos, out: &mut Vec<Action>) {
        self.let_go(now, out);
        self.begin_checks(now, out);
        self.say_losses(out);
        self.say_ends(now, out);
        self.verify_on(now, out);
        self.say_compared(now, out);
        self.look_after_wishes(now, out);
        self.try_switch(now, out);
        self.read_on(now, out);
        self.ask_to_publish(out);
    }

    fn message(&mut self, now: Nanos, message: ReceiverMessage, out: &mut Vec<Action>) {
        if matches!(self.link, Link::Greeting { .. })
            && !matches!(message, ReceiverMessage::Hello(_) | ReceiverMessage::Refusal(_))
        {
            return self.protocol_error("a message before the greeting", out);
        }
        match message {
            ReceiverMessage::Hello(hello) => self.greeted(now, &hello, out),
            ReceiverMessage::LedgerSlice(slice) => self.ledger_slice(now, slice, out),
            ReceiverMessage::ClaimVerdict(verdict) => self.claim_verdict(now, &verdict, out),
            ReceiverMessage::Credit(credit) => {
                if let Link::Up { granted, granted_at, .. } = &mut self.link
                    && credit.granted_bytes > *granted
                {
                    (*granted, *granted_at) = (credit.granted_bytes, now);
                }
            }
            ReceiverMessage::Staged(staged) => self.staged(&staged.layers),
            ReceiverMessage::Published(published) => self.published(now, &published, out),
            ReceiverMessage::Void(void) => self.void(now, &void.layers),
            ReceiverMessage::Lost(lost) => self.lost(now, &lost.layers),
            ReceiverMessage::ResumeAnswer(answer) => self.resume_answer(now, &answer, out),
            ReceiverMessage::DigestAnswer(answer) => self.digest_answer(answer, out),
            ReceiverMessage::Refusal(refusal) => self.refused(now, refusal, out),
            ReceiverMessage::Notice(notice) => {
                // A store that fails besides says nothing of its room.
                self.is_gateway_full =
                    matches!(notice, Notice::GatewayFull { .. }) || (self.is_gateway_full && notice != Notice::Ready);
                self.trouble = (notice != Notice::Ready).then_some(notice);
            }
            ReceiverMessage::LossRecorded(recorded) => self.loss_recorded(recorded, out),
            // For people.
            ReceiverMessage::Points(_) | ReceiverMessage::Damage(_) => {}
            _ => {}
        }
    }

    fn refused(&mut self, now: Nanos, refusal: Refusal, out: &mut Vec<Action>) {
        let Refusal { code, volume, text } = refusal;
        match (code, volume) {
            (RefusalCode::Term, Some(volume)) => self.claim_anew(now, volume, Reclaim::Term),
            // Not of necessity a fork: a gateway that lost what it had landed may find that its dead predecessor published it.
            (RefusalCode::DuplicateDiffers, Some(volume)) => self.claim_anew(now, volume, Reclaim::Lost),
            (RefusalCode::Store, Some(_)) => self.digests_retry = Some(now + self.config.limits.recheck),
            (_, Some(volume)) => {
                if let Some(volume) = self.volumes.get_mut(&volume)
                    && matches!(volume.check, volume::Check::Claiming { .. })
                    && volume.claim_refused.replace(text.clone()).as_ref() == Some(&text)
                {
                    return; // it was said, and is asked again in a while
                }
            }
            (_, None) => {
                if let Some(connection) = self.link.connection() {
                    out.push(Action::Disconnect { connection, why: Problem::Refused { code, text: text.clone() } });
                }
            }
        }
        out.push(Action::Report { volume, what: Report::Refused { code, text } });
    }

    fn connected_anew(&mut self, now: Nanos, connection: u64, out: &mut Vec<Action>) {
        if self.link != Link::Down {
            self.disconnected(now, Ended::Closed, out);
        }
        self.connected(connection, out);
    }

    fn add_volume(&mut self, now: Nanos, setup: VolumeSetup, out: &mut Vec<Action>) {
        let (id, lost) = (setup.meta.id, setup.tracking_lost);
        let added = self.volumes.entry(id).or_insert_with(|| Volume::new(setup));
        let is_up = matches!(self.link, Link::Up { .. });
        if is_up && !self.features.has(added.features()) {
            self.no_sealing(out);
        }
        if lost {
            self.tracking_lost(now, id, out);
        }
    }

    fn set_service(&mut self, id: VolumeId, service: Service) {
        if let Some(volume) = self.volumes.get_mut(&id)
            && (volume.service < Service::Unread || service == Service::Leaving)
        {
            volume.service = service;
        }
    }

    /// Whether somebody here may still need this region hot (L2): layers not known published, a compare to come, granules to
    /// send again, unreadable runs, a switch under way, records above the durable header. Ask on the thread that steps, right before a clear; the open map,
    /// writes in flight and failed flushes are the shim's to know.
    pub fn mentions(&self, volume: VolumeId, region: RegionIndex) -> bool {
        if mutation::on(MENTIONED) {
            return false;
        }
        self.is_switching(volume)
            || self.volumes.get(&volume).is_none_or(|v| v.keeps_hot(region) || v.is_uncovered(region) || !v.heat.0.is_empty())
    }

    /// All that a `clean` header must carry for this volume beside the open map (T2): frozen and unpublished layers, what is
    /// to be compared (all its granules), sent again or retried. Only after [`Event::Halt`], and with no switch under way.
    pub fn owed(&self, volume: VolumeId) -> GranuleSet {
        let mut owed = self.volumes.get(&volume).map_or_else(GranuleSet::new, Volume::owed);
        if let Some(taken) = self.switching.as_ref().and_then(|s| s.members.get(&volume)) {
            owed.union_with(&taken.extra);
        }
        owed
    }

    /// Whether everything is published as of the last tick's samples.
    pub fn settled(&self) -> bool {
        self.everything_is_quiet()
    }

    /// Whether there is a volume whose state the receiver does not take: no cut of the whole group can be until that is over.
    pub fn is_refused(&self) -> bool {
        self.volumes.values().any(|volume| matches!(volume.standing, volume::Standing::Refused(_)))
    }

    /// What both sides can do, on the newest connection; nothing before its greeting.
    pub fn features(&self) -> Features {
        match self.link {
            Link::Up { .. } => self.features,
            Link::Down | Link::Greeting { .. } => Features::default(),
        }
    }

    /// Whether an [`Action::Switch`] awaits its [`Event::SwitchDone`].
    pub fn switching(&self) -> bool {
        self.switching.is_some()
    }

    fn is_switching(&self, volume: VolumeId) -> bool {
        self.switching.as_ref().is_some_and(|s| s.members.contains_key(&volume))
    }

    fn send(&self, message: SourceMessage, out: &mut Vec<Action>) {
        let connection = self.link.connection().expect("nothing is sent without a connection");
        out.push(Action::Send { connection, message: Box::new(message) });
    }

    fn layers_of(&self, epoch: EpochId) -> impl Iterator<Item = &Layer> {
        self.volumes.values().flat_map(|v| &v.layers).filter(move |l| l.epoch == epoch)
    }

    fn layer(&self, key: &LayerKey) -> Option<&Layer> {
        self.volumes.get(&key.volume)?.layers.iter().find(|l| l.key == *key)
    }

    fn layer_mut(&mut self, key: &LayerKey) -> Option<&mut Layer> {
        self.volumes.get_mut(&key.volume)?.layer_mut(key)
    }
}
